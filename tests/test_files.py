"""Files that are whole or not there, whatever happens while they are written."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.files import write_whole, write_whole_with


def child(body, path):
    """Run a program with a path in a process of its own, and return how it ended."""
    head = "import os, resource, signal, sys\nfrom pathlib import Path\nfrom common.files import *\n"
    command = [sys.executable, "-c", f"{head}path = Path(sys.argv[1])\n{body}", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def names(folder):
    """What lies in a folder, hidden files included."""
    return [path.name for path in folder.iterdir()]


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=200))
def test_what_was_written_is_read_back(tmp_path_factory, content):
    """A file holds exactly the bytes that were given, and nothing else is left in the folder."""
    folder = tmp_path_factory.mktemp("files")
    write_whole(folder / "file", content)
    assert (folder / "file").read_bytes() == content
    assert names(folder) == ["file"]


def test_a_text_is_written_as_utf_8(tmp_path):
    """Texts are UTF-8, and the ends of their lines are not translated."""
    write_whole(tmp_path / "file", "ε\n\r\n")
    assert (tmp_path / "file").read_bytes() == b"\xce\xb5\n\r\n"


def test_an_old_file_is_replaced(tmp_path):
    """The new content takes the place of the old, longer one."""
    path = tmp_path / "file"
    path.write_text("the old and longer content")
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_whoever_has_the_old_file_open_reads_it_to_its_end(tmp_path):
    """The file is replaced, not rewritten: a reader that began before sees the old content whole."""
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        write_whole(path, "new and longer")
        assert reader.read() == "old"


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path):
    """Flush the file, rename it, flush the folder: in this order a power cut leaves the old file or the new, whole."""
    calls = []

    def watch(_frame, event, function) -> None:
        if event == "c_call" and function.__name__ in {"fsync", "replace", "rename"}:
            calls.append(function.__name__)

    sys.setprofile(watch)
    try:
        write_whole(tmp_path / "file", b"x")
    finally:
        sys.setprofile(None)
    assert calls == ["fsync", "replace", "fsync"]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    """When the disk takes 1000 of 5000 bytes, OSError is raised, the old file stays, and nothing lies beside it."""
    path = tmp_path / "file"
    path.write_text("old")
    body = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole(path, b"x" * 5000)
except OSError:
    print("refused")
"""
    ended = child(body, path)
    assert ended.stdout == "refused\n", ended.stderr
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_no_new_file(tmp_path):
    """Where there was no file, there is none after a failure either."""
    body = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_whole(path, b"x" * 5000)
"""
    assert child(body, tmp_path / "file").returncode == 1
    assert names(tmp_path) == []


def test_a_killed_process_leaves_the_old_file_whole(tmp_path):
    """A process that dies in the middle of writing has not touched the file."""
    path = tmp_path / "file"
    path.write_text("old")
    body = """
def half(temporary):
    temporary.write_text("half of the new")
    os.kill(os.getpid(), signal.SIGKILL)
write_whole_with(path, half)
"""
    assert child(body, path).returncode == -9
    assert path.read_text() == "old"


def test_what_a_killed_process_left_does_not_stop_the_next(tmp_path):
    """After a crash the same file can be written again."""
    path = tmp_path / "file"
    child(
        "write_whole_with(path, lambda t: (t.write_text('half'), os.kill(os.getpid(), signal.SIGKILL)))",
        path,
    )
    write_whole(path, "whole")
    assert path.read_text() == "whole"


def test_an_error_of_the_writer_leaves_the_old_file_whole(tmp_path):
    """When the callback raises after it wrote half, its error comes out and the old file stays."""
    path = tmp_path / "file"
    path.write_text("old")

    def half(temporary):
        temporary.write_text("half")
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        write_whole_with(path, half)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_writer_that_writes_nothing_is_an_error(tmp_path):
    """A callback that makes no file raises OSError, and the old file stays."""
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="No such file"):
        write_whole_with(path, lambda _: None)
    assert path.read_text() == "old"


def test_a_writer_gets_a_place_in_the_same_folder(tmp_path):
    """The file is filled beside its place, so that the rename stays within one file system."""
    places = []
    write_whole_with(tmp_path / "file", lambda temporary: (places.append(temporary), temporary.write_text("x")))
    assert [place.parent for place in places] == [tmp_path]
    assert places[0].name != "file"
    assert (tmp_path / "file").read_text() == "x"


def test_a_missing_folder_is_an_error(tmp_path):
    """Folders are not made: OSError says that there is none."""
    with pytest.raises(OSError, match="No such file or directory"):
        write_whole(tmp_path / "folder" / "file", "x")


def test_two_processes_that_write_the_same_file_leave_one_whole(tmp_path):
    """Processes write beside each other under names of their own: whoever is last wins, with a whole file."""
    path = tmp_path / "file"
    body = "for _ in range(50): write_whole(path, bytes([65 + os.getpid() % 26]) * 10000)"
    head = "import os, sys\nfrom pathlib import Path\nfrom common.files import write_whole\npath = Path(sys.argv[1])\n"
    writers = [subprocess.Popen([sys.executable, "-c", head + body, str(path)]) for _ in range(2)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    content = path.read_bytes()
    assert len(content) == 10000
    assert len(set(content)) == 1
    assert names(tmp_path) == ["file"]
