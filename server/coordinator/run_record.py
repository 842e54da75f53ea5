"""What a deployed run keeps in its folder beside what every run has: its identifier, and who takes part.

    run.json             the identifier, which stays when the run is resumed, the consortium and the purpose
    organisations.json   in the order of their numbers: name, records, digests of policy and code

Both are written whole, before the first order leaves.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.config import Scenario
from common.errors import BadInputError
from common.files import write_whole

RUN, ORGANISATIONS = "run.json", "organisations.json"


@dataclass(frozen=True, kw_only=True)
class Organisation:
    """An organisation as it offered to take part."""

    name: str
    records: int
    policy: str
    code: str


def begin(folder: Path, scenario: Scenario, *, run: str, consortium: str) -> None:
    """Write the identifier of a run into its new folder, before anybody is asked."""
    facts = {"run": run, "consortium": consortium, "purpose": scenario.run.purpose}
    write_whole(folder / RUN, json.dumps(facts, indent=1) + "\n")


def run_in(folder: Path) -> str:
    """Return the identifier of a folder's run; BadInputError for a folder of another kind."""
    return str(_read(folder / RUN)["run"])


def write_organisations(folder: Path, organisations: Sequence[Organisation]) -> None:
    """Write who takes part."""
    write_whole(folder / ORGANISATIONS, json.dumps([asdict(one) for one in organisations], indent=1) + "\n")


def organisations_in(folder: Path) -> tuple[Organisation, ...]:
    """Return who takes part in a folder's run; BadInputError when the file does not read."""
    return tuple(Organisation(**one) for one in _read(folder / ORGANISATIONS))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: expected the record of a deployed run, got: {error}.") from error
