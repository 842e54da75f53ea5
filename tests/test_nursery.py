"""The process that workers are forked from: what it spares, and what nobody inherits from it."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.config import parse
from common.errors import AccountingError
from simulations.engine import nursery
from simulations.single_plan import checked, plan_of

ROOT = Path(__file__).parents[1]
TEXT = """
run = {name = "x", rounds = 1}
data = {dataset = "digits", clients = 10}
training = {batch_size = 14, local_steps = 1}
"""
PLAIN, PRIVATE = 'privacy = {unit = "none"}\n', "privacy = {noise_multiplier = 1.0}\n"


@pytest.mark.parametrize(
    ("overrides", "is_wanted"),
    [
        ([], (os.cpu_count() or 1) > 1),
        (["engine.kind=sequential"], False),
        (["server.cohort=1"], False),
    ],
)
def test_it_is_started_only_where_there_may_be_workers(overrides, is_wanted):
    """One process, or a cohort of one, needs no other."""
    assert nursery.is_wanted(parse(TEXT + PLAIN, overrides=overrides)) == is_wanted


def test_the_parent_s_threads_and_signals_are_as_before():
    """Starting it sets the number of threads and blocks Ctrl-C for the child alone."""
    before = dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    nursery.context()
    assert (dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before


@pytest.mark.parametrize("privacy", [PLAIN, PRIVATE])
def test_a_plan_is_checked_while_something_else_goes_on(privacy):
    """What stands within is done; a plan on which the accountants agree passes."""
    scenario, done = parse(TEXT + privacy), []
    with checked(plan_of(scenario), scenario):
        done.append(True)
    assert done == [True]


def test_a_plan_that_is_refused_elsewhere_is_refused_here():
    """The error of the process that checks comes out at the end, as if it had been raised here."""
    scenario = parse(TEXT + PRIVATE)
    plan = plan_of(scenario)
    broken = replace(plan, delta=1e-11)  # no accountant answers below 1e-10
    with pytest.raises(AccountingError, match="delta: expected a number from 1e-10"), checked(broken, scenario):
        pass


def test_a_plain_run_imports_nothing_that_it_does_not_need(tmp_path):
    """Opacus, the compiler, scikit-learn, pandas and the accountants take seconds: none is imported without privacy."""
    (tmp_path / "scenario.toml").write_text(TEXT + PLAIN)
    code = f"""
import sys
from dataclasses import replace
from pathlib import Path
from common.config import load
from server.observer import Observer
if __name__ == "__main__":
    from simulations.single_run import simulate
    folder = Path({str(tmp_path)!r})
    simulate(load(folder / "scenario.toml"), out=folder / "run", ledger=None, watcher=Observer())
    heavy = ("opacus", "torch._dynamo", "sklearn", "pandas", "dp_accounting", "matplotlib")
    print([name for name in heavy if name in sys.modules])
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "[]\n"


def test_torch_waits_until_a_scenario_was_read():
    """Whoever asks for help, or whose scenario is wrong, does not wait for torch."""
    code = "import sys, discreet; from simulations import campaign, progress; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "False\n"
