"""The run's folder: checkpoints that are whole or the old ones, rounds that can be cut back, one process at a time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from common.errors import RunFailedError
from server.observer import RoundRecord
from server.run_folder import COLUMNS, RunFolder

STATE = {"weights": torch.tensor([1.5, -0.0, 3e38]), "optimizer.step": torch.tensor(7.0)}
HEADER = "round,cohort,replies,refused,accuracy,loss,epsilon_max,seconds,client_accuracy\n"


@pytest.fixture
def folder(tmp_path) -> Iterator[RunFolder]:
    with closing(RunFolder(tmp_path)) as held:
        yield held


def record(number: int, **changes: object) -> RoundRecord:
    values = {"round": number, "attempt": 1, "cohort": 4, "replies": 3, "seconds": 0.25} | changes
    return RoundRecord(**values)  # type: ignore[arg-type]


def rounds(folder: RunFolder) -> str:
    return (folder.path / "rounds.csv").read_text()


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_first_attempt_is_number_one(folder):
    """Nothing was begun before."""
    assert folder.attempts().total() == 0
    assert folder.begin(1) == 1


def test_attempts_at_a_round_are_counted(folder):
    """The third time that a round begins is its third attempt, whatever came between."""
    assert [folder.begin(number) for number in (1, 2, 2, 12, 2)] == [1, 1, 2, 1, 3]
    assert folder.attempts() == {1: 1, 2: 3, 12: 1}


def test_attempts_survive_the_process(tmp_path):
    """Another process that takes the folder up counts on."""
    with closing(RunFolder(tmp_path)) as first:
        first.begin(1)
        first.begin(2)
    with closing(RunFolder(tmp_path)) as second:
        assert second.begin(2) == 2


def test_attempt_is_on_disk_when_begin_returns(folder):
    """Nothing waits in a buffer of the process: another reader sees the line."""
    folder.begin(3)
    assert (folder.path / "checkpoint" / "attempts.txt").read_text() == "3\n"


def test_line_of_attempts_without_its_end_does_not_run_into_the_next(folder):
    """A full disk left `1` of `12`: the next attempt is at round 12, not at round 112."""
    folder.begin(1)
    with (folder.path / "checkpoint" / "attempts.txt").open("a") as file:
        file.write("1")
    folder.begin(12)
    assert set(folder.attempts()) <= {1, 12}
    assert folder.attempts()[12] >= 1


# --- checkpoint -------------------------------------------------------------------------------------------------------


def test_without_a_checkpoint_there_is_none(folder):
    """A new run begins at the beginning."""
    assert folder.load() is None


def test_checkpoint_comes_back_bit_for_bit(folder):
    """Round, names and bits of what was saved."""
    folder.save(3, STATE)
    loaded = folder.load()
    assert loaded is not None
    assert loaded[0] == 3
    assert {name: value.numpy().tobytes() for name, value in loaded[1].items()} == {
        name: value.numpy().tobytes() for name, value in STATE.items()
    }


def test_later_checkpoint_takes_the_place_of_the_former(folder):
    """There is one checkpoint, the last, and nothing beside it."""
    folder.save(1, STATE)
    folder.save(2, {"weights": torch.zeros(1)})
    loaded = folder.load()
    assert loaded is not None
    assert loaded[0] == 2
    assert loaded[1].keys() == {"weights"}
    assert {path.name for path in (folder.path / "checkpoint").iterdir()} == {"state.safetensors", "lock"}


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_checkpoint_that_does_not_read_is_refused(folder, content):
    """Empty, torn, foreign, or without a round: our error, which names the file."""
    (folder.path / "checkpoint" / "state.safetensors").write_bytes(content)
    with pytest.raises(RunFailedError, match=r"state\.safetensors: the checkpoint does not read"):
        folder.load()


def test_torn_checkpoint_is_refused(folder):
    """A checkpoint that lost its tail is not read in part."""
    folder.save(1, STATE)
    path = folder.path / "checkpoint" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFailedError, match="does not read"):
        folder.load()


def test_final_model_is_written_by_name_with_its_description(folder):
    """Weights under their names and the description as metadata, to be read without this code."""
    folder.save_model({"layer.weight": torch.ones(2, 2)}, {"dataset": "digits"})
    path = folder.path / "model.safetensors"
    assert load_file(path)["layer.weight"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"dataset": "digits"}


def test_small_file_is_written_whole(folder):
    """`write` replaces a file and leaves nothing beside it."""
    folder.write("note.txt", "one")
    folder.write("note.txt", "two")
    assert (folder.path / "note.txt").read_text() == "two"
    assert {path.name for path in folder.path.iterdir()} == {"checkpoint", "note.txt"}


# --- rounds.csv -------------------------------------------------------------------------------------------------------


def test_rounds_have_the_documented_columns():
    """Scripts rely on them."""
    assert ",".join(COLUMNS) + "\n" == HEADER


def test_round_is_a_line(folder):
    """The refused are counted, numbers have six digits, seconds three."""
    done = record(
        1,
        refused=((2, "failed"), (3, "no-answer")),
        metrics={"accuracy": 0.12345678, "loss": 2.5, "f1": 0.5},
        epsilon_max=1.0,
    )
    folder.append_round(done)
    assert rounds(folder) == HEADER + "1,4,3,2,0.123457,2.5,1,0.250,\n"


def test_round_that_was_not_evaluated_has_empty_fields(folder):
    """Empty, not zero."""
    folder.append_round(record(1))
    folder.append_round(record(2))
    assert rounds(folder) == HEADER + "1,4,3,0,,,,0.250,\n2,4,3,0,,,,0.250,\n"


def test_the_clients_accuracy_is_the_last_column(folder):
    """It has six digits, and is empty where it is withheld; what scripts read before stands where it stood."""
    folder.append_round(record(1, client_accuracy=0.912345678))
    assert rounds(folder) == HEADER + "1,4,3,0,,,,0.250,0.912346\n"


def test_rounds_of_a_run_that_was_begun_before_are_kept(folder):
    """A table without the last column gets it, empty, when the run resumes."""
    before = HEADER.replace(",client_accuracy", "")
    (folder.path / "rounds.csv").write_text(before + "1,4,3,0,0.5,1,,0.250\n2,4,3,0,,,,0.250\n3,4")
    folder.cut_rounds(1)
    folder.append_round(record(2))
    assert rounds(folder) == HEADER + "1,4,3,0,0.5,1,,0.250,\n2,4,3,0,,,,0.250,\n"


def test_rounds_after_the_checkpoint_are_cut_off(folder):
    """A round whose line was written before its checkpoint is run again, and must not be there twice."""
    for number in range(1, 13):
        folder.append_round(record(number))
    folder.cut_rounds(10)
    assert [line.split(",")[0] for line in rounds(folder).splitlines()[1:]] == [str(n) for n in range(1, 11)]


def test_torn_line_is_cut_off(folder):
    """A line that a crash left without its end goes, and the next one stands alone."""
    folder.append_round(record(1))
    with (folder.path / "rounds.csv").open("a") as file:
        file.write("2,4,3")
    folder.cut_rounds(2)
    folder.append_round(record(2))
    assert rounds(folder) == HEADER + "1,4,3,0,,,,0.250,\n2,4,3,0,,,,0.250,\n"


@pytest.mark.parametrize("left", ["", "round,coh", HEADER[:-1]])
def test_torn_header_is_written_again(folder, left):
    """A crash in the very first line leaves an empty file or half a header: the run resumes all the same."""
    (folder.path / "rounds.csv").write_text(left)
    folder.cut_rounds(0)
    folder.append_round(record(1))
    assert rounds(folder) == HEADER + "1,4,3,0,,,,0.250,\n"


def test_nothing_is_cut_where_nothing_was_written(folder):
    """A run that stopped before its first round has no rounds.csv, and gets none by cutting."""
    folder.cut_rounds(0)
    assert not (folder.path / "rounds.csv").exists()


def test_cutting_to_the_last_round_changes_nothing(folder):
    """A run that stopped between two rounds keeps every line."""
    folder.append_round(record(1))
    before = rounds(folder)
    folder.cut_rounds(1)
    assert rounds(folder) == before


# --- one process at a time --------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from server.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.begin(1)
print("held", flush=True)
sys.stdin.read()
"""


def test_second_process_is_refused_until_the_first_is_gone(tmp_path):
    """Two processes on one folder: the second is told so; after a SIGKILL of the first it takes over."""
    with child(HOLD, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFailedError, match=r"another process is running this run\. Wait for it, or stop it"):
            RunFolder(tmp_path)
        os.kill(holder.pid, signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL
    with closing(RunFolder(tmp_path)) as folder:
        assert folder.begin(1) == 2


def test_refused_process_leaves_the_folder_as_it_was(folder):
    """Who is turned away has written nothing, and the holder goes on."""
    folder.save(1, STATE)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(RunFailedError):
        RunFolder(folder.path)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    assert folder.begin(2) == 1


def test_closed_folder_can_be_taken(tmp_path):
    """While a folder is held nobody takes it; `close` lets go, and the next one counts on."""
    first = RunFolder(tmp_path)
    assert first.begin(1) == 1
    with pytest.raises(RunFailedError, match="another process is running this run"):
        RunFolder(tmp_path)
    first.close()
    with closing(RunFolder(tmp_path)) as second:
        assert second.begin(1) == 2


def test_half_written_files_of_a_killed_process_are_swept_away(tmp_path):
    """What was being written beside the checkpoint when the process died goes; the checkpoint stays."""
    with closing(RunFolder(tmp_path)) as first:
        first.save(1, STATE)
    (tmp_path / "checkpoint" / ".state.safetensors.4711").write_bytes(b"half")
    with closing(RunFolder(tmp_path)) as second:
        assert {file.name for file in (tmp_path / "checkpoint").iterdir()} == {"lock", "state.safetensors"}
        loaded = second.load()
        assert loaded is not None
        assert loaded[0] == 1


# --- full disk --------------------------------------------------------------------------------------------------------

FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import torch
from common.errors import RunFailedError
from server.observer import RoundRecord
from server.run_folder import RunFolder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = RunFolder(Path(sys.argv[1]))
record = RoundRecord(round=1, attempt=1, cohort=1, replies=1, seconds=1.0)
folder.begin(1)
folder.append_round(record)
folder.write("note.txt", "old")
folder.save(1, {"weights": torch.ones(4)})
folder.save_model({"layer": torch.ones(4)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))  # a file gets its first byte and no more
said = {}
for name, act in {
    "begin": lambda: folder.begin(2),
    "append_round": lambda: folder.append_round(record),
    "write": lambda: folder.write("note.txt", "new"),
    "save": lambda: folder.save(2, {"weights": torch.zeros(100_000)}),
    "save_model": lambda: folder.save_model({"layer": torch.zeros(100_000)}, {}),
}.items():
    try:
        act()
    except BaseException as error:
        said[name] = [type(error).__name__, str(error)]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    """Run on a disk that is full after the first round; return the folder and what each write said."""
    path = tmp_path_factory.mktemp("full")
    with child(FULL_DISK, path) as process:
        said, _ = process.communicate()
    assert process.returncode == 0
    return path, json.loads(said)


@pytest.mark.parametrize("name", ["begin", "append_round", "write", "save", "save_model"])
def test_full_disk_ends_the_run_with_a_remedy(full_disk, name):
    """Each write that does not fit says so, names the folder, and how to go on."""
    path, said = full_disk
    assert said[name][0] == "RunFailedError"
    assert said[name][1].startswith(f"{path}: cannot be written (")
    assert said[name][1].endswith(f"The last checkpoint is whole; make room and continue with --resume {path}.")


def test_full_disk_leaves_the_last_checkpoint_whole(full_disk):
    """The checkpoint of round 1, the final model and the small file are the old ones, with nothing half-written."""
    path, _ = full_disk
    with closing(RunFolder(path)) as folder:
        loaded = folder.load()
        assert loaded is not None
        assert loaded[0] == 1
        assert loaded[1]["weights"].tolist() == [1.0] * 4
        assert folder.attempts() == {1: 1}
    assert load_file(path / "model.safetensors")["layer"].tolist() == [1.0] * 4
    assert (path / "note.txt").read_text() == "old"
    assert {file.name for file in path.iterdir()} == {"checkpoint", "model.safetensors", "note.txt", "rounds.csv"}
    assert {file.name for file in (path / "checkpoint").iterdir()} == {"attempts.txt", "lock", "state.safetensors"}
