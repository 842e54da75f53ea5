"""From the roster to nodes: who is let in, who is taken out, and what is not obeyed."""

import shutil
import time
from dataclasses import dataclass, field, replace

import pytest
import sample_consortium

from common.consortium import keys
from common.errors import ConsortiumError
from server import enrolment
from server.link import registration
from server.link.flower_app import Node
from server.link.registration import RosterWatch


@dataclass
class NodeTable:
    """Stands for Flower's table of nodes."""

    rows: list[Node] = field(default_factory=list)

    def nodes(self):
        return list(self.rows)

    def admit(self, pem, *, name, known):
        former = [row for row in known if row.pem == pem]
        self.rows = [row for row in self.rows if row.pem != pem]
        number = former[0].identifier if former else len(self.rows) + 1
        self.rows.append(Node(identifier=number, pem=pem, name=name, is_registered=True))

    def withdraw(self, node):
        self.rows = [replace(row, is_registered=row.is_registered and row != node) for row in self.rows]

    def registered(self):
        return {row.name: row.identifier for row in self.rows if row.is_registered}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Return a consortium of three owners and a witness, one owner's certificate expired."""
    return sample_consortium.make(tmp_path_factory.mktemp("sample"), expired=["owner-1"])


@pytest.fixture
def consortium(sample, tmp_path):
    """Return a copy of its folder that a test may change."""
    return shutil.copytree(sample.folder.path, tmp_path / "consortium")


@pytest.fixture
def watch(consortium, tmp_path):
    """Return the watch over it as a link opens it."""
    return RosterWatch.open(consortium, seen=tmp_path / "seen", now=time.time())


def test_active_owners_are_let_in_and_nobody_else(watch, sample):
    """Neither the witness, nor the coordinator, nor an expired owner has a node."""
    assert {name: peer.pem for name, peer in watch.peers.items()} == {
        owner.name: keys.node_public_pem(owner.node_key).encode() for owner in sample.owners if owner.name != "owner-1"
    }


def test_settling_makes_the_table_the_roster(watch):
    """Who is missing is registered, a key that no member has is taken out, a wrong name is put right."""
    foreign = Node(identifier=90, pem=b"foreign", name="", is_registered=True)
    misnamed = Node(identifier=91, pem=watch.peers["owner-0"].pem, name="somebody", is_registered=True)
    flower = NodeTable([foreign, misnamed])
    lines = registration.settle(flower, watch.peers)
    assert flower.registered() == {"owner-0": 91, "owner-2": 3}
    assert lines == ["a node that no member has: unregistered", "owner-0: registered", "owner-2: registered"]
    assert registration.settle(flower, watch.peers) == []


def test_who_was_withdrawn_comes_back_as_the_same_node(watch):
    """A member that is denied, or expires, and is admitted again keeps its node."""
    flower = NodeTable()
    registration.settle(flower, watch.peers)
    before = flower.registered()
    registration.settle(flower, {})
    assert flower.registered() == {}
    registration.settle(flower, watch.peers)
    assert flower.registered() == before


def test_nothing_new_is_the_same_watch(watch):
    """Looking again costs two calls to the file system while nothing changed."""
    assert watch.looked_again(now=time.time()) is watch


def test_certificate_that_expires_takes_its_owner_out(watch):
    """Time alone changes who is active."""
    later = watch.roster.member("owner-0").expires
    assert watch.looked_again(now=later - 1) is watch
    assert watch.looked_again(now=later).peers == {}


def test_denied_member_is_out_with_the_next_look(watch, sample, consortium):
    """The coordinator's list takes a member out without a new roster."""
    enrolment.revoke(replace(sample.folder, path=consortium), "owner-0")
    assert watch.looked_again(now=time.time()).peers.keys() == {"owner-2"}


def test_older_roster_is_not_obeyed(watch, sample, consortium, tmp_path, caplog):
    """A roster of a former serial, though rightly signed, brings nobody back, neither now nor at a start."""
    (tmp_path / "seen").write_text((tmp_path / "seen").read_text().replace('"serial": ', '"serial": 1'))
    (consortium / "roster.json").touch()
    again = watch.looked_again(now=time.time())
    assert again.roster == watch.roster
    assert "stays in force" in caplog.text
    with pytest.raises(ConsortiumError, match="or newer"):
        RosterWatch.open(consortium, seen=tmp_path / "seen", now=time.time())


@pytest.mark.parametrize("content", ["", "{}", '{"roster": 1, "signatures": {}}'])
def test_roster_that_does_not_verify_is_not_obeyed(watch, consortium, content, caplog):
    """Half a file, or one that not all signed, leaves the last good one in force, and a line says so once."""
    (consortium / "roster.json").write_text(content)
    again = watch.looked_again(now=time.time())
    assert again.peers == watch.peers
    assert again.looked_again(now=time.time()) is again
    assert len(caplog.messages) == 1


def test_roster_that_is_gone_is_not_obeyed(watch, consortium):
    """No file is no change."""
    (consortium / "roster.json").unlink()
    assert watch.looked_again(now=time.time()).peers == watch.peers


def test_denials_that_do_not_verify_stay_as_they_were(watch, sample, consortium, caplog):
    """Who damages the list lets nobody back in."""
    enrolment.revoke(replace(sample.folder, path=consortium), "owner-0")
    denied = watch.looked_again(now=time.time())
    (consortium / "denied.json").write_text("{}")
    assert denied.looked_again(now=time.time()).peers.keys() == {"owner-2"}
    assert "stays denied" in caplog.text
    with pytest.raises(ConsortiumError):
        RosterWatch.open(consortium, seen=consortium / "seen", now=time.time())
