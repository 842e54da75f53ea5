"""What goes away and comes back, for real: the network, the right time, the witness, a ledger, the disk.

The first organisation reaches the link through a proxy and refuses without the witness, the second one has a clock that
can be shifted and waits for the witness, the third one does without.
"""

import resource
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_stage import LONG, Place, fault_stage, lines, wait_for
from proxy import Proxy, proxied

from client.witness import cosigned_file
from simulations.trials.processes import wait_ready

pytestmark = pytest.mark.slow  # minutes of real processes: `make test-slow`

ONE, TWO, THREE = "organisation-1", "organisation-2", "organisation-3"
MANY = {"training__local_steps": LONG}
CUT_S = 20.0
MINUTES_10 = 600


@dataclass(frozen=True)
class Scene:
    """The stage, the first organisation's cable, and what the second one's clock is off by."""

    place: Place
    proxy: Proxy
    offset: Path


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("outages")
    offset = folder / "offset"
    offset.write_text("0")
    launcher = str(Path(__file__).with_name("shifted_clock.py"))
    limits = {ONE: {"witness_down": "refuse"}, THREE: {"witness": None, "witness_down": None}}
    with proxied() as proxy:

        def behind(address: str) -> str:
            proxy.lead_to(address)
            return proxy.address

        commands = {TWO: (launcher, str(offset))}
        with fault_stage(folder / "stage", limits=limits, links={ONE: behind}, commands=commands) as place:
            yield Scene(place, proxy, offset)


def refusals(figures) -> list[int]:
    return [one["refusals"] for one in figures["organisations"]]


def charged(place: Place, run) -> list[int]:
    found = [place.charges(name, run) for name in place.stage.cast.organisations]
    return [0 if one is None else one.charged for one in found]


def test_a_network_cut_of_20_s_loses_nothing(scene: Scene):
    """A proxy that stops forwarding in mid-training: all replies come, and nobody trains twice."""
    place = scene.place
    with place.running(**MANY) as run:
        place.mid_training(ONE, run)
        scene.proxy.cut()
        time.sleep(CUT_S)  # the outage itself
        scene.proxy.mend()
        figures = run.figures()
    assert refusals(figures) == [0, 0, 0]
    assert run.replies() == [3, 3]
    assert charged(place, run) == [2, 2, 2]
    assert len(lines(place.node(ONE), "Trying again until it works")) == 1
    assert len(lines(place.node(ONE), "answers again after")) == 1


def test_a_clock_10_minutes_off_is_refused_with_one_line_until_it_is_right(scene: Scene):
    """Late and early: nothing is lost when it is set right in time; when it is not, the others go on."""
    place, node = scene.place, scene.place.node(TWO)
    with place.running(run__rounds=3, server__round_timeout_s=10, **MANY) as run:
        place.mid_training(TWO, run)
        scene.offset.write_text(str(-MINUTES_10))
        wait_for("the late clock is noticed", lambda: lines(node, "the clocks differ"))
        scene.offset.write_text("0")
        place.mid_training(TWO, run, number=2)
        scene.offset.write_text(str(MINUTES_10))
        wait_for("the others go on", lambda: len(run.replies()) == 2)
        scene.offset.write_text("0")
        figures = run.figures()
    assert run.replies() == [3, 2, 3]
    assert refusals(figures) == [0, 1, 0]
    assert charged(place, run) == [3, 3, 3]
    assert len(lines(node, "the clocks differ", "timedatectl")) == 2
    assert len(lines(node, "answers again after")) == 2


def test_a_witness_that_is_killed_is_waited_for_or_its_absence_refused(scene: Scene):
    """As each policy says: nothing is charged by who refuses, the round waits for who waits, the third one goes on."""
    place = scene.place
    with place.running(run__rounds=3, **MANY) as run:
        for name in (ONE, TWO):
            place.begun(name, run)
        place.stage.witness.kill()
        wait_for("one refuses", lambda: lines(place.node(ONE), "refused: not-witnessed"))
        wait_for("the other waits", lambda: lines(place.node(TWO), "waiting", "the witness does not answer"))
        place.begun(THREE, run, number=2)
        place.stage.start_witness()
        wait_ready(place.stage.witness, within_s=30)
        wait_for("the round completes", lambda: len(run.replies()) >= 2)
        figures = run.figures()
    assert run.replies() == [3, 2, 3]
    assert refusals(figures) == [1, 0, 0]
    assert charged(place, run) == [2, 3, 3]
    assert lines(run.process, "client 0", "not-witnessed")
    assert len(lines(place.node(TWO), "waiting")) == len(lines(place.node(TWO), "witness answers again")) == 1
    assert len(lines(place.node(ONE), "not-witnessed")) == 1


class Backup:
    """A ledger as it was, with what was noted beside it."""

    def __init__(self, ledger: Path, folder: Path) -> None:
        self.ledger, self.folder = ledger, folder
        folder.mkdir()
        with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(folder / ledger.name)) as copy:
            source.backup(copy)
        for note in self.notes():
            shutil.copyfile(note, folder / note.name)

    def notes(self) -> list[Path]:
        """The owner's own memory, and the witness's newest note."""
        return [self.ledger.with_name("ledger.seen"), cosigned_file(self.ledger)]

    def bring_back(self, *, with_notes: bool) -> None:
        for ending in ("-wal", "-shm"):
            self.ledger.with_name(self.ledger.name + ending).unlink(missing_ok=True)
        for file in [self.ledger, *(self.notes() if with_notes else [])]:
            shutil.copyfile(self.folder / file.name, file)


def test_a_ledger_of_yesterday_is_refused_by_the_owners_memory_and_by_the_witness(scene: Scene, tmp_path):
    """A node does not start on an older copy; where its memory is as old, the witness tells. The others go on."""
    place = scene.place
    with place.running(run__rounds=3, **MANY) as run:
        place.mid_training(TWO, run)
        yesterday = Backup(place.ledger(TWO), tmp_path / "yesterday")
        place.mid_training(TWO, run, number=2)
        place.node(TWO).kill()
        today = Backup(place.ledger(TWO), tmp_path / "today")
        yesterday.bring_back(with_notes=True)
        cosigned_file(place.ledger(TWO)).unlink()  # then the witness itself is asked
        place.restarted(TWO)
        node = place.node(TWO)
        words = wait_for("the witness tells", lambda: lines(node, "refused: not-witnessed"))
        node.kill()
        before = place.charges(TWO, run)
        today.bring_back(with_notes=True)
        yesterday.bring_back(with_notes=False)
        place.stage.start_node(TWO)
        code = place.node(TWO).process.wait(60)
        figures = run.figures()
    (error,) = lines(place.node(TWO), "error:")
    today.bring_back(with_notes=True)
    place.restarted(TWO)
    assert run.replies() == [3, 2, 2]
    assert refusals(figures) == [0, 2, 0]
    assert "this is an older copy. Nothing was trained" in words[0]
    assert before is not None
    assert before.charged == 1  # nothing was written to the old copy
    assert code == 1
    assert "this is an older copy. Nothing was trained" in error
    assert charged(place, run) == [3, 2, 3]


def test_a_ledger_that_cannot_be_written_trains_nothing(scene: Scene):
    """As on a full disk: `not-recorded`, nothing charged, and once there is room again the next round is trained."""
    place = scene.place
    child = place.child(THREE)
    before = resource.prlimit(child, resource.RLIMIT_FSIZE)
    with place.running(run__rounds=2, **MANY) as run:
        resource.prlimit(child, resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            wait_for("it is refused", lambda: lines(place.node(THREE), "refused: not-recorded"))
        finally:
            resource.prlimit(child, resource.RLIMIT_FSIZE, before)
        figures = run.figures()
    assert run.replies() == [2, 3]
    assert refusals(figures) == [0, 0, 1]
    assert charged(place, run) == [2, 2, 1]
    assert len(lines(place.node(THREE), "refused: not-recorded")) == 1
