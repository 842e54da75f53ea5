"""The Flower app of the coordinator.

What it needs comes as run config, flat text values:

    scenario     the scenario's text
    run-folder   a folder of the coordinator's that holds plan.json; results and checkpoints go there
    shards       the folder of the public test set
"""

from contextlib import closing
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from common import flat
from common.config import Scenario, parse
from common.errors import BudgetSpentError
from common.models.registry import model_of
from common.privacy.plan_file import from_json_text
from common.shards import open_test
from server.evaluation import Evaluator
from server.global_model import GlobalModel
from server.run_folder import RunFolder
from server.strategy import PrivateAveraging

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a scenario, or what is left of it, and write the final model into the run folder."""
    scenario = parse(str(context.run_config["scenario"]))
    with closing(RunFolder(Path(str(context.run_config["run-folder"])))) as folder:
        plan = from_json_text((folder.path / "plan.json").read_text())
        model = model_of(scenario)
        strategy = PrivateAveraging(
            scenario=scenario,
            plan=plan,
            model=(weights := GlobalModel(flat.flatten(model), scenario.server)),
            folder=folder,
            evaluator=Evaluator(scenario, open_test(Path(str(context.run_config["shards"])))),
        )
        try:
            strategy.start(grid, ArrayRecord(), num_rounds=scenario.run.rounds, timeout=scenario.server.round_timeout_s)
        except BudgetSpentError:
            _save(folder, model, weights, scenario)  # what the budget was spent for
            raise
        _save(folder, model, weights, scenario)


def _save(folder: RunFolder, model: torch.nn.Module, weights: GlobalModel, scenario: Scenario) -> None:
    flat.load(model, weights.result_P)
    named = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    description = {"model": scenario.model.model_dump_json(), "dataset": scenario.data.dataset}
    folder.save_model(named, description)
