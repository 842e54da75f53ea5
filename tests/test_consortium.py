"""The consortium: nobody alone changes the roster, revocation does not wait, and each attack is one clear error."""

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from time import time

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from sample_consortium import make, sign_all
from typer.testing import CliRunner

from client.commands import identity as identity_verbs
from common.consortium import authority as authorities
from common.consortium import denials, identity, keys, names, roster_words, rotation
from common.consortium import roster as rosters
from common.consortium.roster import Member, Roster, is_active
from common.errors import ConsortiumError
from common.transparency.notes import Signer
from server import consortium_folder, consortium_table, enrolment
from server.commands import consortium as consortium_verbs

PEM = authorities.new_authority("study").pem.decode()


@pytest.fixture
def made(tmp_path):
    """Two owners with ledgers, and a witness."""
    return make(tmp_path, owners=2, ledgers=True)


def owner(name, /, **changed: object):
    """An owner of any name, with keys of its own."""
    fields = {
        "name": name,
        "role": "owner",
        "signing": str(Signer.new(name).key),
        "node": keys.node_public_pem(keys.new_node_key()),
        "expires": 2**33,
    }
    return fields | changed


def coordinator(name="coordinator", /, **changed: object):
    return {"name": name, "role": "coordinator", "signing": str(Signer.new(name).key), "expires": 2**33} | changed


def parsed(*members: object, **changed: object):
    content = {"version": 1, "consortium": "study", "serial": 1, "authority": PEM, "members": list(members)}
    return rosters.parse(content | changed, name="roster.json")


def content_of(path):
    return json.loads(path.read_text())


def test_a_whole_consortium_loads_in_order(made):
    """Client numbers are places among the owners, in the order in which they were added."""
    roster = rosters.load(made.folder.roster)
    assert [member.name for member in roster.members] == ["coordinator", "owner-0", "owner-1", "witness"]
    assert [member.name for member in roster.owners] == ["owner-0", "owner-1"]
    assert roster.coordinator.name == "coordinator"
    assert roster.witness("witness").address == "localhost:9444"
    assert roster.serial == 4  # one for each who was added


def test_a_roster_comes_back_equal(made, tmp_path):
    """Written and read again it is the same, and has the same digest."""
    rosters.write(tmp_path / "again.json", made.roster, {})
    again = rosters.unsigned(tmp_path / "again.json")
    assert again == made.roster
    assert again.digest == made.roster.digest


@pytest.mark.parametrize("name", ["coordinator", "owner-1", "witness"])
def test_every_signature_is_needed(made, name):
    """Whoever's is missing, or is another's, the roster is not in force, and the error names who."""
    content = content_of(made.folder.roster)
    good = content["signatures"]
    for signature in (None, "", "nonsense", 5, good["owner-0"]):
        content["signatures"] = {**good, name: signature} if signature is not None else dict(good)
        if signature is None:
            del content["signatures"][name]
        made.folder.roster.write_text(json.dumps(content))
        with pytest.raises(
            ConsortiumError, match=rf"expected the signature of every member .* of {name}\. Let them sign"
        ):
            rosters.load(made.folder.roster)


@pytest.mark.parametrize(
    ("field", "value"),
    [("consortium", "other"), ("serial", 5), ("authority", authorities.new_authority("study").pem.decode())],
)
def test_every_field_of_the_roster_is_signed(made, field, value):
    """One other value and every signature is wrong."""
    content = content_of(made.folder.roster)
    content["roster"][field] = value
    made.folder.roster.write_text(json.dumps(content))
    with pytest.raises(ConsortiumError, match="coordinator, owner-0, owner-1, witness"):
        rosters.load(made.folder.roster)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node", keys.node_public_pem(keys.new_node_key())),
        ("ledger", ""),
        ("certificate", "00" * 32),
        ("address", "evil.example:1"),
        ("expires", 2**33),
    ],
)
def test_every_field_of_a_member_is_signed(made, field, value):
    """Another node key, ledger, certificate, address or expiry: the signatures are wrong."""
    content = content_of(made.folder.roster)
    content["roster"]["members"][1][field] = value
    made.folder.roster.write_text(json.dumps(content))
    with pytest.raises(ConsortiumError, match="expected the signature of every member"):
        rosters.load(made.folder.roster)


def test_a_changed_byte_is_refused_or_means_the_same(made):
    """Each byte in turn, set to another: our error, or exactly the same roster (as with a blank)."""
    data, digest = made.folder.roster.read_bytes(), made.roster.digest
    path = made.folder.path / "changed.json"
    accepted = 0
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert rosters.load(path).digest == digest
            accepted += 1
        except ConsortiumError:
            pass
    assert accepted < len(data) / 3 / 20  # blanks that became another blank, at most


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_our_error(tmp_path_factory, data):
    """Whatever lies in the file."""
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    for read in (rosters.load, rosters.unsigned, rosters.missing_signatures):
        with pytest.raises(ConsortiumError, match=r"any\.json: "):
            read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(field=st.sampled_from([*Member.model_fields, *Roster.model_fields]), value=JSON)
def test_any_value_in_any_field_is_refused_or_changes_what_is_signed(field, value):
    """Types of JSON in the wrong places never give a stray exception."""
    good = parsed(coordinator(), owner("north"))
    content = good.model_dump(mode="json")
    place = content if field in content else content["members"][1]
    is_other = place[field] != value  # `true` for 1 is the same version
    place[field] = value
    try:
        other = rosters.parse(json.loads(json.dumps(content)), name="roster.json")
    except ConsortiumError:
        return
    assert (other.digest != good.digest) == is_other


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((), "expected one coordinator, got none"),
        ((owner("north"),), "expected one coordinator, got none"),
        ((coordinator(), coordinator("second")), "expected one coordinator, got .*second"),
        ((coordinator(revoked=True),), "expected one coordinator"),
        ((coordinator(), owner("north", name="a b")), "expected 1 to 64 letters"),
        ((coordinator(), owner("north"), owner("north")), "a name for each, got one of north and north"),
        ((coordinator(), owner("north"), owner("NORTH")), "a name for each, got one of north and NORTH"),
        ((coordinator(), owner("north", node="")), "node: expected an EC P-384 key"),
        ((coordinator(), owner("north", node="x")), "node: expected an EC P-384 key"),
        ((coordinator(node=keys.node_public_pem(keys.new_node_key())),), "node: expected an EC P-384 key"),
        ((coordinator(ledger=str(Signer.new("l").key)),), "ledger: expected none"),
        ((coordinator(), owner("north", signing="x")), "expected base64|expected name"),
        ((coordinator(), owner("north", signing=str(Signer.new("south").key))), "signing: expected a key of north"),
        ((coordinator(), owner("north", ledger="x")), "ledger|key"),
        ((coordinator(), owner("north", address="nowhere")), "address: expected host:port"),
        ((coordinator(), owner("north", certificate="AB")), "certificate"),
        ((coordinator(), owner("north", expires=-1)), "expires"),
        ((coordinator(), owner("north", revoked=1)), "revoked"),
        ((coordinator(), owner("north", more=1)), "unknown key"),
    ],
)
def test_an_impossible_roster_is_refused(members, message):
    """Each rule of what a roster may hold, whoever signed it."""
    with pytest.raises(ConsortiumError, match=message):
        parsed(*members)


def test_a_roster_of_a_newer_discreet_is_told():
    """What its fields mean is unknown: the remedy is another one."""
    with pytest.raises(ConsortiumError, match=r"version: expected 1, got 2.*upgrade Discreet"):
        parsed(coordinator(), version=2)


def test_two_members_have_no_key_in_common():
    """Signing, node and ledger keys and certificates are each one member's; the name under a key does not hide it."""
    one, two = owner("north"), owner("south")
    signer = Signer.new("south")
    renamed = Signer("north", signer._private)
    for changed in (
        (one | {"certificate": "aa" * 32}, two | {"certificate": "aa" * 32}),
        (one, two | {"node": one["node"]}),
        (one | {"signing": str(renamed.key)}, two | {"signing": str(signer.key)}),
        (one | {"ledger": str(signer.key)}, two | {"ledger": str(signer.key)}),
        (one | {"ledger": str(renamed.key)}, two | {"signing": str(signer.key)}),
        (one | {"signing": str(renamed.key), "ledger": str(renamed.key)}, two),
    ):
        with pytest.raises(ConsortiumError, match=r"for each, got one of north and (south|north) alike"):
            parsed(coordinator(), *changed)


def test_the_same_keys_cannot_be_added_under_another_name(made, tmp_path):
    """A whole request of another, changed in name only, fails at its proofs; nothing is drafted and nothing issued."""
    content = content_of(made.owners[0].folder / "request.json")
    content["request"]["name"] = "owner-9"
    (tmp_path / "request.json").write_text(json.dumps(content))
    with pytest.raises(ConsortiumError, match="proof that the member has the signing key"):
        enrolment.add(made.folder, tmp_path / "request.json")
    assert not made.folder.draft.exists()
    assert not made.folder.issued("owner-9").exists()


def test_a_ledger_that_another_has_is_refused_before_anything_is_written(made, tmp_path):
    """An owner cannot take over another's ledger, and so its witness's memory."""
    ledger = made.roster.owners[0].ledger
    asks = identity.new(tmp_path / "thief", "thief", ledger=ledger)
    with pytest.raises(ConsortiumError, match="got one of owner-0 and thief alike"):
        enrolment.add(made.folder, asks.folder / "request.json")
    assert not made.folder.draft.exists()
    assert not made.folder.issued("thief").exists()


def test_a_second_coordinator_is_refused(made, tmp_path):
    """Whoever asks for it."""
    asks = identity.new(tmp_path / "second", "second", role="coordinator", address="x:1")
    with pytest.raises(ConsortiumError, match="expected one coordinator"):
        enrolment.add(made.folder, asks.folder / "request.json")


def test_anothers_name_is_not_taken(made, tmp_path):
    """New keys for a name that is there need the former key's signature; --replace is for a key that is lost."""
    asks = identity.new(tmp_path / "thief", "owner-0")
    with pytest.raises(ConsortiumError, match="expected the signature of owner-0's present key"):
        enrolment.add(made.folder, asks.folder / "request.json")
    vouched = identity.new(tmp_path / "vouched", "owner-0", former=Signer.new("owner-0"))
    with pytest.raises(ConsortiumError, match="expected the signature of owner-0's present key"):
        enrolment.add(made.folder, vouched.folder / "request.json")
    draft = enrolment.add(made.folder, asks.folder / "request.json", replace=True)
    assert draft.roster.owners[0].key == asks.signer.key
    assert "owner-0" in draft.missing


def test_a_request_from_before_a_rotation_brings_the_old_keys_not_back(made):
    """The former request is right in itself, but its key is not the present one any more."""
    own = made.owners[0]
    old = (own.folder / "request.json").read_bytes()
    enrolment.add(made.folder, rotation.rotate(own.folder).folder / "request.json")
    (own.folder / "old.json").write_bytes(old)
    with pytest.raises(ConsortiumError, match="expected the signature of owner-0's present key"):
        enrolment.add(made.folder, own.folder / "old.json")


def test_another_role_under_the_same_name_is_refused(made, tmp_path):
    """An owner does not become a witness."""
    asks = identity.new(tmp_path / "asks", "owner-0", role="witness", address="x:1", former=made.owners[0].signer)
    with pytest.raises(ConsortiumError, match="expected owner-0 as owner, got witness"):
        enrolment.add(made.folder, asks.folder / "request.json")


def test_the_same_request_again_renews_the_certificate(made):
    """Same keys, a new certificate, the same place; the roster in force stays until all have signed."""
    own, before = made.owners[0], made.roster
    late = time() + 300 * 86_400
    draft = enrolment.add(made.folder, own.folder / "request.json", now=late)
    assert rosters.load(made.folder.roster) == before
    assert draft.roster.serial == before.serial + 1
    assert draft.missing == ("owner-0", "owner-1", "witness")
    after = sign_all(made.folder, made.members[1:])
    assert after.owners[0].expires > before.owners[0].expires
    assert identity.trusted_roster(own) == after
    assert not made.folder.draft.exists()


def test_a_revoked_member_is_denied_at_once(made):
    """Before anybody else has signed; the roster in force is as it was, and the next one needs not its signature."""
    draft = enrolment.revoke(made.folder, "owner-0")
    assert rosters.denied(made.folder.denied, made.roster) == {"owner-0"}
    assert draft.missing == ("owner-1", "witness")
    after = sign_all(made.folder, [made.owners[1], made.witness])
    assert [member.name for member in after.owners] == ["owner-1"]
    assert not is_active(after.member("owner-0"), 0)
    with pytest.raises(ConsortiumError, match="owner-0: expected to be in the roster of sample, got revoked"):
        identity.trusted_roster(with_roster(made))
    with pytest.raises(ConsortiumError, match="expected an active member, got one revoked"):
        enrolment.revoke(made.folder, "owner-0")


def with_roster(made):
    """The first owner's identity, with the roster in force beside it."""
    shutil.copyfile(made.folder.roster, made.owners[0].roster)
    return made.owners[0]


def test_a_revoked_members_keys_never_come_back(made, tmp_path):
    """Neither with its own request nor with --replace; new keys do, by hand, and are not denied."""
    enrolment.revoke(made.folder, "owner-0")
    with pytest.raises(ConsortiumError, match="expected new keys of owner-0, who is revoked"):
        enrolment.add(made.folder, made.owners[0].folder / "request.json", replace=True)
    stolen = rotation.rotate(made.owners[0].folder)  # vouched for by the revoked key: that counts for nothing
    with pytest.raises(ConsortiumError, match="expected the signature of owner-0's present key"):
        enrolment.add(made.folder, stolen.folder / "request.json")
    back = identity.new(tmp_path / "back", "owner-0")
    roster = enrolment.add(made.folder, back.folder / "request.json", replace=True).roster
    assert not roster.owners[0].revoked
    assert rosters.denied(made.folder.denied, roster) == frozenset()
    assert rosters.denied(made.folder.denied, made.roster) == {"owner-0"}


def test_two_revocations_are_both_denied(made):
    """The second does not take the first back."""
    enrolment.revoke(made.folder, "owner-0")
    enrolment.revoke(made.folder, "witness")
    assert rosters.denied(made.folder.denied, made.roster) == {"owner-0", "witness"}


def test_a_member_that_is_rotating_is_denied_with_both_keys(made):
    """The key in force and the one that waits: what is denied is the member, not what the draft calls it."""
    coming = rotation.rotate(made.owners[0].folder)
    draft = enrolment.add(made.folder, coming.folder / "request.json").roster
    enrolment.revoke(made.folder, "owner-0")
    assert rosters.denied(made.folder.denied, made.roster) == {"owner-0"}
    assert rosters.denied(made.folder.denied, draft) == {"owner-0"}


def test_revocation_does_not_wait_for_the_coordinators_new_key(made):
    """While its rotation is drafted it still denies with the key in force, which the link knows."""
    enrolment.add(made.folder, rotation.rotate(made.folder.identity).folder / "request.json")
    enrolment.revoke(made.folder, "owner-0")
    assert rosters.denied(made.folder.denied, made.roster) == {"owner-0"}


def test_a_draft_that_was_thrown_away_takes_its_serial_with_it(made, tmp_path):
    """Members that signed it would refuse another of the same serial."""
    asks = identity.new(tmp_path / "asks", "late")
    first = enrolment.add(made.folder, asks.folder / "request.json").roster
    made.folder.draft.unlink()
    second = enrolment.add(made.folder, asks.folder / "request.json").roster
    assert (first.serial, second.serial) == (5, 6)
    assert sign_all(made.folder, [*made.members[1:], asks]).serial == 6


def test_the_coordinator_is_not_revoked(made):
    """It would deny itself; its keys are rotated instead."""
    with pytest.raises(ConsortiumError, match=r"got the coordinator\. Rotate its keys"):
        enrolment.revoke(made.folder, "coordinator")


def test_nobody_is_denied_without_a_file(made):
    """A consortium in which nobody was revoked."""
    assert rosters.denied(made.folder.denied, made.roster) == frozenset()


def test_a_forged_denial_is_refused(made):
    """By a member, by nobody, of another consortium, with a name taken away: no file is passed over in silence."""
    enrolment.revoke(made.folder, "owner-0")
    good = content_of(made.folder.denied)
    key = made.roster.owners[1].signing
    statement = denials._denial("sample", [key])
    by_owner = base64.b64encode(made.owners[0].signer.sign_bytes(statement)).decode()
    other = base64.b64encode(made.coordinator.signer.sign_bytes(denials._denial("other", [key]))).decode()
    for content in (
        good | {"denied": []},
        good | {"denied": [key]},
        good | {"denied": [*good["denied"], key]},
        good | {"denied": [key], "signature": by_owner},
        good | {"denied": [key], "signature": other, "consortium": "other"},
        good | {"signature": None},
        good | {"denied": [5]},
        good | {"denied": "all"},
        [],
    ):
        made.folder.denied.write_text(json.dumps(content))
        with pytest.raises(ConsortiumError, match=r"denied\.json: expected"):
            rosters.denied(made.folder.denied, made.roster)
    made.folder.denied.unlink()
    with pytest.raises(ConsortiumError, match="expected the key of the coordinator"):
        rosters.deny(made.folder.denied, made.roster, ["owner-0"], made.owners[1].signer)


def test_an_older_roster_is_refused(made, tmp_path):
    """A node keeps the newest serial: yesterday's roster, with a revoked member in it, is refused."""
    seen, before = tmp_path / "seen", made.roster
    rosters.refuse_older(before, seen)
    rosters.refuse_older(before, seen)
    enrolment.revoke(made.folder, "owner-0")
    after = sign_all(made.folder, [made.owners[1], made.witness])
    rosters.refuse_older(after, seen)
    with pytest.raises(ConsortiumError, match="expected one of sample of serial 5 or newer, got sample 4"):
        rosters.refuse_older(before, seen)


def test_two_rosters_of_one_serial_and_foreign_ones_are_refused(tmp_path):
    """Another content of the same serial, another consortium, and a memory that does not read."""
    seen = tmp_path / "seen"
    rosters.refuse_older(parsed(coordinator()), seen)
    with pytest.raises(ConsortiumError, match="another of the same serial"):
        rosters.refuse_older(parsed(coordinator()), seen)
    with pytest.raises(ConsortiumError, match="expected one of study"):
        rosters.refuse_older(parsed(coordinator(), consortium="other", serial=9), seen)
    for text in ("", "[]", '{"serial": "9"}'):
        seen.write_text(text)
        with pytest.raises(ConsortiumError, match="seen: expected"):
            rosters.refuse_older(parsed(coordinator(), serial=9), seen)


def test_who_is_not_in_it_cannot_sign(made):
    """A stranger, a stranger with a member's name, and a revoked member."""
    draft = enrolment.revoke(made.folder, "owner-0").path
    before = draft.read_bytes()
    with pytest.raises(ConsortiumError, match="expected a member, got 'stranger'"):
        rosters.sign(draft, Signer.new("stranger"))
    with pytest.raises(ConsortiumError, match="expected owner-1 with the key that is to sign, got another key"):
        rosters.sign(draft, Signer.new("owner-1"))
    with pytest.raises(ConsortiumError, match="expected owner-0 with the key that is to sign, got revoked"):
        rosters.sign(draft, made.owners[0].signer)
    assert draft.read_bytes() == before


def test_signatures_of_copies_are_merged(made, tmp_path):
    """Each member signs a copy of its own; together they are the roster in force."""
    draft = enrolment.revoke(made.folder, "owner-0").path
    copies = [tmp_path / name for name in ("one.json", "two.json")]
    for copy, member in zip(copies, (made.owners[1], made.witness), strict=True):
        shutil.copyfile(draft, copy)
        identity.sign_roster(member, copy)
    with pytest.raises(ConsortiumError, match="expected the signatures of all, got none of witness"):
        enrolment.merge(copies[:1], made.folder.roster)
    assert made.roster.serial == 4
    assert enrolment.merge(copies[:1], tmp_path / "part.json") == ("witness",)
    assert enrolment.merge(copies, made.folder.roster) == ()
    assert made.roster.serial == 5
    assert content_of(made.folder.identity / "roster.json") == content_of(made.folder.roster)


def test_a_wrong_signature_is_not_merged(made, tmp_path):
    """It would hide the right one of another copy."""
    draft = enrolment.revoke(made.folder, "owner-0").path
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    shutil.copyfile(draft, good)
    for member in (made.owners[1], made.witness):
        identity.sign_roster(member, good)
    content = content_of(good)
    content["signatures"] |= {"witness": content["signatures"]["owner-1"], "owner-0": "AAAA", "stranger": "AAAA"}
    bad.write_text(json.dumps(content))
    assert enrolment.merge([good, bad], tmp_path / "out.json") == ()
    assert enrolment.merge([bad, good], tmp_path / "out.json") == ()
    assert content_of(tmp_path / "out.json")["signatures"].keys() == {"coordinator", "owner-1", "witness"}


def test_copies_of_different_rosters_are_not_merged(made, tmp_path):
    """Nor a roster that is older than the one in force, nor another consortium's."""
    shutil.copyfile(made.folder.roster, tmp_path / "old.json")
    draft = enrolment.revoke(made.folder, "owner-0").path
    with pytest.raises(ConsortiumError, match="expected the same roster as"):
        enrolment.merge([draft, made.folder.roster], tmp_path / "out.json")
    with pytest.raises(ConsortiumError, match="expected files to merge, got none"):
        enrolment.merge([], tmp_path / "out.json")
    sign_all(made.folder, [made.owners[1], made.witness])
    with pytest.raises(ConsortiumError, match="expected serial 5 or newer, got 4"):
        enrolment.merge([tmp_path / "old.json"], made.folder.roster)
    other = make(tmp_path / "other", owners=1, name="other", witness=False)
    with pytest.raises(ConsortiumError, match="expected a roster of sample and its authority"):
        enrolment.merge([other.folder.roster], made.folder.roster)


def test_the_coordinators_keys_are_rotated(made):
    """Its former key signed denied.json; the new roster says the same, and the link is not left without an answer."""
    enrolment.revoke(made.folder, "owner-0")
    coming = rotation.rotate(made.folder.identity)
    draft = enrolment.add(made.folder, coming.folder / "request.json")
    assert draft.missing == ("coordinator", "owner-1", "witness")
    after = sign_all(made.folder, [made.owners[1], made.witness, coming])
    assert after.coordinator.key == coming.signer.key
    assert rosters.denied(made.folder.denied, after) == frozenset()
    assert after.member("owner-0").revoked
    finished = rotation.finish(made.folder.identity)
    assert identity.trusted_roster(finished) == after
    enrolment.revoke(made.folder, "witness")
    assert rosters.denied(made.folder.denied, after) == {"witness"}


def test_who_is_active():
    """From the second of its expiry on, and once revoked, a member is not."""
    north = Member(**owner("north", expires=1_000))
    assert is_active(north, 999.9)
    assert not is_active(north, 1_000)
    assert not is_active(north.model_copy(update={"revoked": True}), 0)


def test_asking_for_who_is_not_there_names_who_is(made):
    """A member by another name, a witness that is none."""
    with pytest.raises(
        ConsortiumError, match=r"expected a member, got 'nobody'\. Its members are coordinator, owner-0"
    ):
        made.roster.member("nobody")
    with pytest.raises(ConsortiumError, match="expected 'owner-0' to be a witness, got another role"):
        made.roster.witness("owner-0")


def test_changes_are_said_in_words(made, tmp_path):
    """What somebody would want to sneak in stands in a sentence."""
    before = made.roster
    swapped = before.model_copy(update={"members": before.members[::-1]})
    assert any("ORDER" in sentence for sentence in roster_words.changes(before, swapped))
    fewer = before.model_copy(update={"members": before.members[:2]})
    assert "owner-1 is GONE without being revoked." in roster_words.changes(before, fewer)
    other = parsed(*[member.model_dump() for member in before.members], serial=9)
    sentences = roster_words.changes(before, other)
    assert sentences[:2] == [
        "ANOTHER consortium: sample before, study now.",
        "ANOTHER authority signs certificates.",
    ]
    assert roster_words.changes(before, before) == []
    fresh = identity.new(tmp_path / "fresh", "owner-0")
    draft = enrolment.add(made.folder, fresh.folder / "request.json", replace=True).roster
    assert roster_words.changes(before, draft)[0].startswith(
        "owner-0 changes its signing key, its node key, its ledger"
    )
    revoked = enrolment.revoke(made.folder, "witness").roster
    assert "witness is revoked." in roster_words.changes(before, revoked)
    assert "witness is NO LONGER revoked." in roster_words.changes(revoked, before)
    assert any(before.digest in sentence for sentence in roster_words.in_words(before))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("a.example:1", True),
        ("127.0.0.1:65535", True),
        ("[::1]:9443", True),
        ("::1:9443", False),
        ("a.example", False),
        ("a.example:0", False),
        ("a.example:65536", False),
        ("a.example:٣", False),
        ("a b:1", False),
        (":1", False),
        ("[a.example]:1", False),
        ("https://a.example:1", False),
        ("a.example:1\n", False),
    ],
)
def test_an_address_is_a_host_and_a_port(text, fits):
    """An IPv6 address stands in brackets; nothing else does."""
    assert names.is_address(text) == fits


def test_a_consortium_is_made_whole_or_not_at_all(tmp_path):
    """A folder that holds something is left as it is; a wrong address or name leaves none."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "ledger.db").write_text("precious")
    with pytest.raises(ConsortiumError, match="expected no folder or an empty one, got files"):
        consortium_folder.init(tmp_path / "full", "study")
    for change in ({"addresses": ["a b"]}, {"coordinator": "../x"}):
        with pytest.raises(ConsortiumError):
            consortium_folder.init(tmp_path / "made", "study", **change)
    with pytest.raises(ConsortiumError, match="consortium: expected 1 to 64 letters"):
        consortium_folder.init(tmp_path / "made", "a/b")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    consortium_folder.init(tmp_path / "empty", "study")
    assert rosters.load(tmp_path / "empty" / "roster.json").serial == 1


def test_private_keys_of_a_consortium_are_for_their_owner_alone(tmp_path):
    """Every file .key is 0600 and the folder 0700, under umask 0 too."""
    before = os.umask(0)
    try:
        folder = consortium_folder.init(tmp_path / "made", "study").path
    finally:
        os.umask(before)
    found = sorted(path for path in folder.rglob("*.key"))
    assert [path.name for path in found] == ["ca.key", "signing.key", "tls.key", "server.key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_table_tells_signed_expired_revoked_and_denied(tmp_path):
    """What `consortium show` prints, as plain values."""
    made = make(tmp_path, owners=3, expired=["owner-1"])
    enrolment.revoke(made.folder, "owner-0")
    table = consortium_table.table(made.folder.path)
    force = {member["name"]: member for member in table["in_force"]["members"]}
    draft = {member["name"]: member for member in table["draft"]["members"]}
    assert (force["owner-0"]["state"], draft["owner-0"]["state"]) == ("denied", "revoked")
    assert force["owner-1"]["days"] == -2
    assert force["owner-2"] | {"signing": "", "ledger": ""} == {
        "name": "owner-2",
        "role": "owner",
        "state": "active",
        "days": 364,
        "signed": True,
        "signing": "",
        "ledger": "",
        "address": "",
    }
    assert table["draft"]["missing"] == ["owner-1", "owner-2", "witness"]
    assert table["server_days"] == 364
    with pytest.raises(ConsortiumError, match="expected the folder of a consortium"):
        consortium_table.table(tmp_path)


@pytest.fixture
def run():
    """Call the verbs as the command line does; return what they print."""
    app = typer.Typer()
    consortium_verbs.mount(app)
    identity_verbs.mount(app)

    def call(*arguments: object):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return call


def test_the_verbs_make_a_consortium(run, tmp_path, monkeypatch):
    """From nothing to a roster in force, as the documents tell it; nothing private is printed."""
    monkeypatch.chdir(tmp_path)
    said = run("consortium", "init", "study", "--address", "link.example", "--address", "10.0.0.1:9443")
    said += run("identity", "new", "north", "--out", "north")
    said += run("identity", "new", "watch", "--role", "witness", "--out", "watch", "--address", "watch.example:9444")
    said += run("consortium", "add", "north/request.json") + run("consortium", "add", "watch/request.json")
    draft = Path("consortium/roster-draft.json")
    assert "north joins as owner." not in run("consortium", "sign", draft, "--identity", "north", "--look")
    assert rosters.missing_signatures(draft) == ("north", "watch")
    for name in ("north", "watch"):
        shutil.copyfile(draft, f"{name}.json")
        said += run("consortium", "sign", f"{name}.json", "--identity", name)
    said += run("consortium", "merge", "north.json", "watch.json", "--out", "consortium/roster.json")
    assert "all have signed" in said
    for name in ("north", "watch"):
        for file in (*Path("consortium/issued", name).iterdir(), Path("consortium/roster.json")):
            shutil.copy(file, name)
    assert json.loads(run("identity", "show", "north", "--json"))["problem"] is None
    assert json.loads(run("consortium", "show", "--json"))["in_force"]["serial"] == 3
    said += run("consortium", "revoke", "watch") + run("consortium", "show") + run("consortium", "renew")
    assert "watch is revoked." in run("consortium", "sign", draft, "--identity", "north", "--look")
    said += run("identity", "rotate", "north") + run("identity", "show", "north")
    for path in Path().rglob("*.key"):
        assert path.read_text().splitlines()[1] not in said


def test_looking_refuses_what_signing_would(run, made, tmp_path):
    """--look on a roster in which my keys are another's is an error too."""
    other = make(tmp_path / "other", owners=2)
    with pytest.raises(ConsortiumError, match="owner-0: signing: expected in the roster"):
        run("consortium", "sign", other.folder.roster, "--identity", made.owners[0].folder, "--look")


def test_the_verbs_are_listed_without_heavy_imports():
    """`--help` imports neither cryptography nor pydantic, torch or Flower."""
    code = (
        "import sys, client.commands.identity, server.commands.consortium\n"
        "print([name for name in ('cryptography', 'pydantic', 'numpy', 'torch', 'flwr') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
