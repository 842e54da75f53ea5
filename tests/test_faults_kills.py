"""Processes that die in mid-run, for real: what the others do, what the ledgers say, and the one line that tells."""

import json
import os
import signal
import time

import pytest
from fault_stage import LONG, Place, fault_stage, lines, wait_for

from simulations.trials.processes import wait_ready

ONE, TWO, THREE = "organisation-1", "organisation-2", "organisation-3"
MANY = {"training__local_steps": LONG}
OUTAGE_S = 5.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with fault_stage(tmp_path_factory.mktemp("kills")) as place:
        yield place


def refusals(figures) -> list[int]:
    return [one["refusals"] for one in figures["organisations"]]


def test_a_node_killed_in_mid_training_comes_back_and_never_trains_that_order_again(place: Place):
    """Its charge stays, the order it died over is refused, and it takes part in the next round."""
    with place.running(**MANY) as run:
        place.mid_training(THREE, run)
        place.node(THREE).kill()
        place.restarted(THREE)
        figures = run.figures()
        charges = place.charges(THREE, run)
    assert run.replies() == [2, 3]
    assert refusals(figures) == [0, 0, 1]
    assert charges is not None
    assert (charges.charged, sorted(charges.seen)) == (2, [(1, 1), (2, 1)])
    (line,) = lines(place.node(THREE), "refused")
    assert "already-trained" in line
    (word,) = lines(run.process, "client 2:")
    assert word.endswith(("already-trained", "no-answer"))  # its own, or the link's when it logs off who it was


def test_a_training_process_killed_in_mid_training_costs_one_order(place: Place):
    """The round goes on with the word `worker-died`, the node lives, and a new process trains the next round."""
    with place.running(**MANY) as run:
        place.mid_training(TWO, run)
        os.kill(place.child(TWO), signal.SIGKILL)
        figures = run.figures()
        charges = place.charges(TWO, run)
    assert run.replies() == [2, 3]
    assert refusals(figures) == [0, 1, 0]
    assert charges is not None
    assert charges.charged == 2
    assert lines(run.process, "client 1", "worker-died")
    assert lines(place.node(TWO), "killed by signal 9; another one is started")
    assert place.node(TWO).is_alive()


def test_a_node_that_is_stopped_or_killed_and_started_at_once_is_back_within_seconds(place: Place):
    """The link would take a killed one for alive for nearly a minute."""
    assert place.node(ONE).stop() == 0
    after_stop_s = place.restarted(ONE)
    place.node(ONE).kill()
    after_kill_s = place.restarted(ONE)
    assert max(after_stop_s, after_kill_s) < 30  # two of them to load PyTorch, alone; 53 were Flower's


def test_a_link_killed_in_mid_training_and_started_again_loses_nothing(place: Place):
    """Nodes and coordinator wait for it; every reply of every round comes."""
    with place.running(**MANY) as run:
        place.mid_training(ONE, run)
        assert place.stage.link is not None
        place.stage.link.kill()
        time.sleep(OUTAGE_S)  # the outage itself
        place.stage.start_link()
        wait_ready(place.stage.link, within_s=30)
        figures = run.figures()
        charged = [place.charges(name, run).charged for name in place.stage.cast.organisations]
    assert run.replies() == [3, 3]
    assert refusals(figures) == [0, 0, 0]
    assert charged == [2, 2, 2]


def test_a_coordinator_killed_in_mid_run_resumes_the_same_run(place: Place):
    """The lost round is attempted again, and charged as often as it was attempted."""
    with place.running(**MANY) as run:
        place.mid_training(ONE, run, number=2)
        run.process.kill()
    identifier = run.id
    with place.running(resume=run.folder) as again:
        figures = again.figures()
        charges = [place.charges(name, again) for name in place.stage.cast.organisations]
    status = json.loads(place.discreet("status", "--json").stdout)
    assert figures["run"] == identifier
    assert figures["rounds"] == 2
    assert again.replies() == [3, 3]
    assert {one.charged for one in charges} == {3}  # two rounds, one of them attempted twice
    assert {(2, 1), (2, 2)} <= charges[0].seen
    assert [one["status"] for one in status["runs"][:2]] == ["completed", "stopped"]
    assert lines(again.process, "was left by a coordinator that is gone")


def test_a_second_run_is_refused_and_a_stopped_one_can_be_resumed(place: Place):
    """One run at a time; `discreet stop` ends it with one line, and it goes on where it was."""
    with place.running(**MANY) as run:
        place.mid_training(THREE, run)
        held = place.child(THREE)
        os.kill(held, signal.SIGSTOP)
        with place.running() as second:
            code, why = second.error()
        assert code == 1
        assert "Another run is going on" in " ".join(why)
        stopped = place.discreet("stop")
        assert stopped.returncode == 0
        code, why = run.error()
        assert code == 1
        assert len(why) == 1
        assert "The run was stopped" in why[0]
        os.kill(held, signal.SIGCONT)
    with place.running(resume=run.folder) as again:
        figures = again.figures()
        charged = [place.charges(name, again).charged for name in place.stage.cast.organisations]
    assert figures["rounds"] == 2
    assert charged == [3, 3, 3]


def test_every_process_ends_in_order_when_it_is_told_to(place: Place):
    """SIGTERM in mid-run: all are gone within seconds, and what was charged stands in the ledgers."""
    with place.running(**MANY) as run:
        place.mid_training(ONE, run)
        everybody = [*place.stage.everybody(), run.process]
        for one in everybody:
            one.process.send_signal(signal.SIGTERM)
        wait_for("all are gone", lambda: not any(one.is_alive() for one in everybody), within_s=8)
        codes = {one.name: one.process.returncode for one in everybody}
        (why,) = run.error()[1]
    assert codes == {one.name: 0 for one in everybody} | {"run": 1}
    assert f"discreet run --resume {run.folder}" in why
    charges = place.charges(ONE, run)
    assert charges is not None
    assert charges.charged == 1
