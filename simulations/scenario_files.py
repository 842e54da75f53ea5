"""The scenarios that come with Discreet."""

from importlib.resources import files
from pathlib import Path

from common.errors import BadInputError
from common.files import write_whole

STARTER = "digits.toml"


def write_starter(folder: Path) -> Path:
    """Write the commented demo scenario as `folder`/scenario.toml; BadInputError where one is already."""
    path = folder / "scenario.toml"
    if path.exists():
        raise BadInputError(f"{path}: there is one already. Name another folder, or move it away.")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, shipped(STARTER))
    return path


def shipped(name: str) -> str:
    """Return the text of a scenario that comes with Discreet."""
    return files("simulations").joinpath("scenarios", name).read_text(encoding="utf-8")


def names() -> list[str]:
    """Return the names of the scenarios that come with Discreet."""
    found = (entry.name for entry in files("simulations").joinpath("scenarios").iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))
