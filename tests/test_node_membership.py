"""The roster beside a node: taken up when it changes, never gone back to."""

import time

import pytest
import sample_consortium

from client.node.membership import Membership
from common.consortium import roster as rosters
from common.consortium import seals
from common.errors import ConsortiumError


@pytest.fixture
def consortium(tmp_path):
    return sample_consortium.make(tmp_path, owners=3, witness=False)


def put(consortium, identity, *, signers=None, **changes: object):
    """Write another roster beside an identity, signed by all or by some."""
    roster = consortium.roster.model_copy(update=changes)
    signatures = {one.name: seals.seal(one.signer, roster.statement) for one in signers or consortium.members}
    rosters.write(identity.roster, roster, signatures)
    return roster


def revoked(consortium, name):
    return tuple(one.model_copy(update={"revoked": one.name == name}) for one in consortium.roster.members)


def test_a_node_knows_its_place_and_its_coordinator(consortium, tmp_path):
    """Position among the owners, the roster's digest, and whose orders count."""
    standing = Membership(consortium.owners[1], seen=tmp_path / "seen").standing()
    assert (standing.name, standing.position, standing.consortium) == ("owner-1", 1, "sample")
    assert standing.roster == consortium.roster.digest
    assert standing.coordinator == consortium.coordinator.signer.key


def test_a_new_roster_is_taken_up_without_a_restart(consortium, tmp_path):
    """Somebody before this owner left: its position is another."""
    me = consortium.owners[1]
    membership = Membership(me, seen=tmp_path / "seen")
    put(consortium, me, serial=consortium.roster.serial + 1, members=revoked(consortium, "owner-0"))
    assert membership.standing().position == 0


@pytest.mark.parametrize("damage", ["older", "unsigned", "rubbish", "gone"])
def test_a_roster_that_is_not_right_is_said_once_and_not_used(consortium, tmp_path, caplog, damage):
    """The one before it stays, so that nobody stops a node by a torn file."""
    me = consortium.owners[1]
    newer = put(consortium, me, serial=consortium.roster.serial + 5)
    membership = Membership(me, seen=tmp_path / "seen")
    time.sleep(0.01)  # another modification time
    if damage == "older":
        put(consortium, me, serial=newer.serial - 1)
    elif damage == "unsigned":
        put(consortium, me, serial=newer.serial + 1, signers=consortium.members[:2])
    elif damage == "rubbish":
        me.roster.write_text("{")
    else:
        me.roster.unlink()
    for _ in range(3):
        assert membership.standing().roster == newer.digest
    assert len([record for record in caplog.records if "the new roster is not used" in record.message]) == 1


def test_an_older_roster_is_not_gone_back_to_by_a_restart(consortium, tmp_path):
    """The newest serial is kept on the disk."""
    me = consortium.owners[1]
    old = me.roster.read_bytes()
    put(consortium, me, serial=consortium.roster.serial + 1)
    Membership(me, seen=tmp_path / "seen")
    me.roster.write_bytes(old)
    with pytest.raises(ConsortiumError, match="or newer"):
        Membership(me, seen=tmp_path / "seen")


def test_a_revoked_owner_does_not_begin(consortium, tmp_path):
    """It reads why."""
    me = consortium.owners[1]
    put(consortium, me, serial=consortium.roster.serial + 1, members=revoked(consortium, "owner-1"))
    with pytest.raises(ConsortiumError, match="revoked"):
        Membership(me, seen=tmp_path / "seen")


def test_an_expired_owner_does_not_begin(tmp_path):
    """Its certificate ended a day ago."""
    consortium = sample_consortium.make(tmp_path, owners=1, witness=False, expired=["owner-0"])
    with pytest.raises(ConsortiumError, match="expired"):
        Membership(consortium.owners[0], seen=tmp_path / "seen")
