"""The event log: what was charged is on the disk, whatever happens to the process or the disk."""

import fcntl
import json
import os
import subprocess
import sys
from fractions import Fraction

import pytest

from common.errors import RunFailedError
from common.privacy.event_log import Entry, EventLog, read_entries
from common.privacy.events import SampledGaussian

EVENT = SampledGaussian(noise_multiplier=1.1, sampling_rate=Fraction(1, 20), steps=3)

PROGRAM = """
import os, resource, signal, sys
from fractions import Fraction
from pathlib import Path
from common.errors import RunFailedError
from common.privacy.event_log import Entry, EventLog
from common.privacy.events import SampledGaussian

path = Path(sys.argv[1])
EVENT = SampledGaussian(noise_multiplier=1.1, sampling_rate=Fraction(1, 20), steps=3)
def entry(number):
    return Entry(run="r", round=number, attempt=1, account="client-000000", event=EVENT)
def limit(size_bytes):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))
"""


def entry(number, account="client-000000"):
    """The charge of one round."""
    return Entry(run="r", round=number, attempt=1, account=account, event=EVENT)


def child(path, body):
    """Run a program with a log's path in a process of its own, and return how it ended."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + body, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


def filled(path, *entries: Entry):
    """Write a log and let go of it."""
    log = EventLog(path)
    log.append(entries)
    log.close()


def test_entries_come_back_equal(tmp_path):
    """What was appended is read back equal and in order, by a new log and by a reader alike."""
    entries = (
        entry(1),
        entry(2, "client-000007"),
        Entry(run="ü\n\u2028", round=3, attempt=2, account="a", event=EVENT),
    )
    filled(tmp_path / "events.jsonl", *entries)
    assert read_entries(tmp_path / "events.jsonl") == list(entries)
    again = EventLog(tmp_path / "events.jsonl")
    assert again.entries == entries
    again.close()


def test_a_new_log_is_empty(tmp_path):
    """A file that was not there is made, with no entries, for the owner's eyes only."""
    log = EventLog(tmp_path / "events.jsonl")
    assert log.entries == ()
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600
    log.close()


def test_entries_are_only_ever_added(tmp_path):
    """A second session leaves every byte of the first as it was."""
    path = tmp_path / "events.jsonl"
    filled(path, entry(1))
    before = path.read_bytes()
    filled(path, entry(2))
    assert path.read_bytes().startswith(before)
    assert read_entries(path) == [entry(1), entry(2)]


def test_an_entry_is_one_json_line_without_floats(tmp_path):
    """A stranger can read the log with any JSON parser: whole numbers and texts only."""
    filled(tmp_path / "events.jsonl", entry(1))
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line, parse_float=pytest.fail) == {
        "run": "r",
        "round": 1,
        "attempt": 1,
        "account": "client-000000",
        "event": EVENT.to_json(),
    }


def test_appending_nothing_writes_nothing(tmp_path):
    """An empty list of entries leaves the file as it was."""
    log = EventLog(tmp_path / "events.jsonl")
    log.append([])
    log.close()
    assert (tmp_path / "events.jsonl").read_bytes() == b""


def test_entries_survive_a_killed_process(tmp_path):
    """When `append` has returned, the entries are in the file though the process is killed at once."""
    path = tmp_path / "events.jsonl"
    ended = child(path, "EventLog(path).append([entry(1), entry(2)]); os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.returncode == -9
    assert read_entries(path) == [entry(1), entry(2)]


def test_entries_are_on_the_disk_when_append_returns(tmp_path):
    """The last thing that `append` asks of the system is to flush what it wrote, so that a power cut loses nothing."""
    log = EventLog(tmp_path / "events.jsonl")
    calls = []

    def watch(_frame, event, function) -> None:
        if event == "c_call" and function.__name__ in {"write", "fsync"}:
            calls.append(function.__name__)

    sys.setprofile(watch)
    try:
        log.append([entry(1), entry(2)])
    finally:
        sys.setprofile(None)
    log.close()
    assert calls == ["write", "fsync"]


def test_a_killed_process_leaves_no_lock(tmp_path):
    """After a crash the log can be opened again."""
    path = tmp_path / "events.jsonl"
    child(path, "EventLog(path).append([entry(1)]); os.kill(os.getpid(), signal.SIGKILL)")
    log = EventLog(path)
    assert log.entries == (entry(1),)
    log.close()


def test_a_second_process_is_refused(tmp_path):
    """While one process holds the log no other can open it, and nothing of the log changes."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append([entry(1)])
    ended = child(path, "EventLog(path)")
    assert ended.returncode == 1
    assert "another process is running this run. Wait for it, or stop it." in ended.stderr
    assert read_entries(path) == [entry(1)]
    log.close()


def test_a_log_that_another_process_holds_is_refused_until_it_ends(tmp_path):
    """The other way round too: this process is refused while another one holds the log, and not afterwards."""
    path = tmp_path / "events.jsonl"
    holder = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + "log = EventLog(path); print('held', flush=True); input()", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFailedError, match="another process is running this run"):
            EventLog(path)
        holder.communicate("\n", timeout=60)
    EventLog(path).close()


def test_a_closed_log_is_free(tmp_path):
    """`close` lets go of the file, so that another process can open it."""
    path = tmp_path / "events.jsonl"
    filled(path, entry(1))
    assert child(path, "EventLog(path).append([entry(2)])").returncode == 0
    assert read_entries(path) == [entry(1), entry(2)]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    """A crash in mid-append leaves a line without its end: it is cut off, and the log goes on after the last whole."""
    path = tmp_path / "events.jsonl"
    filled(path, entry(1), entry(2))
    os.truncate(path, path.stat().st_size - cut)
    log = EventLog(path)
    assert log.entries == (entry(1),)
    log.append([entry(3)])
    log.close()
    assert read_entries(path) == [entry(1), entry(3)]


def test_a_log_that_is_one_torn_line_is_empty(tmp_path):
    """A crash in the very first append leaves nothing that counts."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"run":"r","rou')
    log = EventLog(path)
    assert log.entries == ()
    log.close()
    assert path.read_bytes() == b""


def test_a_reader_skips_a_torn_last_line_and_leaves_it(tmp_path):
    """Whoever only reads sees the whole lines, and changes nothing."""
    path = tmp_path / "events.jsonl"
    filled(path, entry(1))
    with path.open("ab") as file:
        file.write(b'{"run":')
    before = path.read_bytes()
    assert read_entries(path) == [entry(1)]
    assert path.read_bytes() == before


LINE = json.dumps(
    {"run": "r", "round": 1, "attempt": 1, "account": "client-000000", "event": EVENT.to_json()}
)  # a line that reads
BROKEN = {
    "no JSON": "spent",
    "empty line": "",
    "no object": "[1]",
    "no event": '{"run":"r","round":1,"attempt":1,"account":"a"}',
    "an event of another kind": LINE.replace("poisson-gaussian", "laplace"),
    "an event without noise": LINE.replace('"1.1"', '"0.0"'),
    "a round that is a text": LINE.replace('"round": 1', '"round": "1"'),
    "a field of the event too many": LINE.replace('"steps"', '"more": 1, "steps"'),
    "half a line": LINE[:40],
    "not UTF-8": "\udcff",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_line_that_does_not_read_stops_the_run(tmp_path, broken):
    """What was spent is not known, so nothing is trained: the line is named and the file is left as it is."""
    path = tmp_path / "events.jsonl"
    content = f"{LINE}\n{broken}\n{LINE}\n".encode(errors="surrogateescape")
    path.write_bytes(content)
    for read in (EventLog, read_entries):
        with pytest.raises(RunFailedError, match=r"line 2 does not read .* restore the file from a backup\."):
            read(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "broken", [LINE.replace('"1/20"', '"1/0"'), LINE.replace('"steps": 3', f'"steps": {10**400}')], ids=["1/0", "1e400"]
)
def test_a_line_with_arithmetic_nonsense_stops_the_run(tmp_path, broken):
    """A rate that divides by zero and steps that no float holds stop the run with the same error."""
    path = tmp_path / "events.jsonl"
    path.write_text(f"{broken}\n")
    with pytest.raises(RunFailedError, match="line 1 does not read"):
        read_entries(path)


def test_a_log_that_was_refused_is_let_go_of(tmp_path):
    """After a broken file was refused and restored, the same process can open it."""
    path = tmp_path / "events.jsonl"
    path.write_text("spent\n")
    with pytest.raises(RunFailedError, match="line 1 does not read"):
        EventLog(path)
    path.write_text("")
    EventLog(path).close()


def test_a_log_that_cannot_be_opened_is_refused(tmp_path):
    """A folder in the place of the file stops the run before anything is trained."""
    with pytest.raises(RunFailedError, match=r"the event log cannot be opened .* Nothing was trained\."):
        EventLog(tmp_path)


def test_a_full_disk_stops_the_run(tmp_path):
    """When the disk takes only part of the entries, `append` raises, and what is read afterwards is whole."""
    path = tmp_path / "events.jsonl"
    filled(path, entry(1))
    size = path.stat().st_size
    ended = child(path, f"log = EventLog(path); limit({size * 3 // 2}); log.append([entry(2)])")  # half a line more
    assert ended.returncode == 1
    assert "the event cannot be written" in ended.stderr
    assert "Nothing was trained." in ended.stderr
    log = EventLog(path)
    assert log.entries == (entry(1),)
    log.append([entry(3)])
    log.close()
    assert read_entries(path) == [entry(1), entry(3)]


def test_entries_written_before_the_disk_was_full_are_charged(tmp_path):
    """Of two entries of which one fitted, that one counts: a charge too many is safe, one too few is not."""
    path = tmp_path / "events.jsonl"
    filled(path, entry(1))
    size = path.stat().st_size
    child(path, f"log = EventLog(path); limit({size * 5 // 2}); log.append([entry(2), entry(3)])")
    log = EventLog(path)
    assert log.entries == (entry(1), entry(2))
    log.close()


def test_a_log_goes_on_after_the_disk_was_full(tmp_path):
    """When there is room again, the same log appends entries that can be read: they survive, as `append` promises."""
    path = tmp_path / "events.jsonl"
    filled(path, entry(1))
    size = path.stat().st_size
    body = f"""
log = EventLog(path)
limit({size * 3 // 2})
try:
    log.append([entry(2)])
except RunFailedError:
    limit(resource.RLIM_INFINITY)
    log.append([entry(3)])
    print("went on")
"""
    ended = child(path, body)
    assert ended.stdout == "went on\n"
    assert read_entries(path) == [entry(1), entry(3)]


def test_the_lock_is_the_kernels(tmp_path):
    """The lock is `flock` on the file itself, so that it ends with its process, however that ends."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    with path.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    log.close()
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
