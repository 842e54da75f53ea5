"""Identities: private keys stay private, requests prove them, and a roster is trusted only with one's own signature."""

import base64
import json
import os
import shutil
import stat
from contextlib import closing
from time import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sample_consortium import make, sign_all

from client import identity_folder
from common.consortium import authority as authorities
from common.consortium import certificates, identity, keys, requests, rotation
from common.consortium import roster as rosters
from common.errors import ConsortiumError
from common.ledger import Ledger
from common.transparency.notes import Signer
from server import consortium_folder, enrolment

PRIVATE = ("signing.key", "node.key", "tls.key")
DAY_S = 86_400


@pytest.fixture
def north(tmp_path):
    """An owner's identity."""
    return identity.new(tmp_path / "north", "north")


def content_of(path):
    return json.loads(path.read_text())


def rewrite(path, **changed: object):
    """Change fields of a request and leave its proofs as they were."""
    content = content_of(path)
    content["request"] |= changed
    path.write_text(json.dumps(content))


def test_private_keys_are_for_their_owner_alone(north):
    """0600, whatever the umask; and nothing private stands in the request."""
    for name in PRIVATE:
        assert stat.S_IMODE((north.folder / name).stat().st_mode) == 0o600
    text = (north.folder / "request.json").read_text()
    assert "PRIVATE" not in text
    for name in PRIVATE:
        body = (north.folder / name).read_text().splitlines()[1]
        assert body not in text


def test_an_open_umask_opens_no_key(tmp_path):
    """With umask 0 keys are still 0600 and the folder 0700."""
    before = os.umask(0)
    try:
        made = identity.new(tmp_path / "made", "north")
    finally:
        os.umask(before)
    assert {stat.S_IMODE((made.folder / name).stat().st_mode) for name in PRIVATE} == {0o600}
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_key_that_others_may_read_is_refused(north, name, mode):
    """Group or others, read or write: refused, with the command that mends it."""
    (north.folder / name).chmod(mode)
    with pytest.raises(ConsortiumError, match=rf"{name}: expected .* \(0600\), got mode {mode:04o}\..*chmod 600"):
        identity.load(north.folder)


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 20_000, None])
def test_a_key_that_does_not_read_is_refused(north, name, content):
    """Empty, text, too long, missing: one error that names the file."""
    if content is None:
        (north.folder / name).unlink()
    else:
        (north.folder / name).write_bytes(content)
    with pytest.raises(ConsortiumError, match=rf"{name}: expected .*, got"):
        identity.load(north.folder)


@pytest.mark.parametrize("name", PRIVATE)
def test_another_identitys_key_is_refused(north, tmp_path, name):
    """Each private key must be the one of which the request names the public half."""
    other = identity.new(tmp_path / "other", "north")
    shutil.copyfile(other.folder / name, north.folder / name)
    with pytest.raises(ConsortiumError, match=rf"{name}: expected the private key of .*request.json, got another"):
        identity.load(north.folder)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked(north):
    """A node starts without a person."""
    locked = keys.new_node_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )
    (north.folder / "node.key").write_bytes(locked)
    with pytest.raises(ConsortiumError, match="without a password"):
        keys.read_node_key(north.folder / "node.key")


def test_a_private_key_is_never_written_over(north, tmp_path):
    """Neither by another identity nor through a link that lies in the way."""
    before = (north.folder / "signing.key").read_bytes()
    with pytest.raises(ConsortiumError, match="expected no identity, got one"):
        identity.new(north.folder, "north")
    with pytest.raises(ConsortiumError, match="expected no file, got one"):
        keys.write_private(north.folder / "signing.key", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConsortiumError, match="expected no file, got one"):
        keys.write_private(tmp_path / "link", b"x")
    assert not (tmp_path / "elsewhere").exists()
    assert (north.folder / "signing.key").read_bytes() == before


def test_an_identity_that_cannot_be_made_leaves_no_key(tmp_path):
    """A folder under a file, and a name that no file may have: an error, and nothing there."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConsortiumError, match="the identity cannot be made"):
        identity.new(tmp_path / "file" / "north", "north")
    with pytest.raises(ConsortiumError, match="address"):
        identity.new(tmp_path / "north", "north", address="no address")
    assert not (tmp_path / "north").exists()


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", "a\n", "é", "a+b", "-a", ".a", "a" * 65, "a\x00", "\ud800"])
def test_an_odd_name_is_refused(tmp_path, name):
    """A name goes into files' names, certificates and logs: letters, digits, '.', '_' and '-'."""
    with pytest.raises(ConsortiumError, match="name: expected 1 to 64 letters"):
        identity.new(tmp_path / "made", name)
    assert not (tmp_path / "made").exists()


def test_a_node_key_is_the_one_that_flower_compares(north):
    """Byte for byte what Flower's own functions write."""
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    assert keys.node_public_pem(north.node_key).encode() == public_key_to_bytes(north.node_key.public_key())
    assert north.request.node == keys.node_public_pem(north.node_key)


def test_only_a_node_key_in_its_one_form_counts():
    """Another curve, another form of the same key and a text are no node keys."""
    good = keys.node_public_pem(keys.new_node_key())
    assert keys.is_node_public(good)
    other = keys.public_pem(ec.generate_private_key(ec.SECP256R1()).public_key())
    assert not any(keys.is_node_public(pem) for pem in (other, good + "\n", good.replace("\n", "\r\n"), "x", "\ud800"))


def test_a_witness_has_no_node_key(tmp_path):
    """Only an owner speaks Flower's protocol."""
    made = identity_folder.new(tmp_path / "made", "watch", role="witness", address="watch.example:9444")
    assert not (made.folder / "node.key").exists()
    assert made.request.node == ""
    with pytest.raises(ConsortiumError, match="expected the address of a witness"):
        identity_folder.new(tmp_path / "other", "watch", role="witness")


def test_an_owners_request_names_its_ledger(tmp_path):
    """The public key is taken from the file beside the ledger."""
    with closing(Ledger.create(tmp_path / "ledger.db")) as ledger:
        made = identity_folder.new(tmp_path / "made", "north", ledger=tmp_path / "ledger.db")
        assert made.request.ledger == str(ledger.key)
    with pytest.raises(ConsortiumError, match=r"none.db.pub: expected a ledger's public key.*discreet ledger new"):
        identity_folder.new(tmp_path / "other", "north", ledger=tmp_path / "none.db")
    with pytest.raises(ConsortiumError, match="expected no ledger of a witness"):
        identity_folder.new(tmp_path / "other", "w", role="witness", ledger=tmp_path / "ledger.db", address="w:1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "south"),
        ("role", "witness"),
        ("ledger", "l+00000000+AA=="),
        ("address", "evil.example:1"),
        ("former", "north+00000000+AA=="),
    ],
)
def test_a_changed_request_is_refused(north, field, value):
    """Every field is under the member's signature."""
    rewrite(north.folder / "request.json", **{field: value})
    with pytest.raises(ConsortiumError, match="expected a proof that the member has the signing key"):
        requests.load(north.folder / "request.json")


def test_a_request_with_anothers_signing_key_is_refused(north, tmp_path):
    """Who puts another's public key into its request cannot sign it."""
    other = identity.new(tmp_path / "other", "north")
    rewrite(north.folder / "request.json", signing=other.request.signing)
    with pytest.raises(ConsortiumError, match="proof that the member has the signing key"):
        requests.load(north.folder / "request.json")


def resigned(request, signer, node_key, /, **changed: object):
    """A request that its signer truly signed, with fields that are not its own."""
    changed_request = request.model_copy(update=changed)
    statement = changed_request.statement
    proofs = {"signing": signer.sign_bytes(statement), "node": keys.prove(node_key, statement)}
    texts = {name: base64.b64encode(proof).decode() for name, proof in proofs.items()}
    return json.dumps({"request": changed_request.model_dump(), "proofs": texts})


def test_a_request_with_anothers_node_key_is_refused(north, tmp_path):
    """The node key must have signed too: a stolen public key takes nobody's place."""
    other = identity.new(tmp_path / "other", "south")
    path = tmp_path / "request.json"
    path.write_text(resigned(north.request, north.signer, north.node_key, node=other.request.node))
    with pytest.raises(ConsortiumError, match="proof that the member has the node key"):
        requests.load(path)


def test_a_request_with_anothers_certificate_request_is_refused(north, tmp_path):
    """A certificate request names who made it, and its key signed that."""
    other = identity.new(tmp_path / "other", "south")
    path = tmp_path / "request.json"
    path.write_text(resigned(north.request, north.signer, north.node_key, csr=other.request.csr))
    with pytest.raises(ConsortiumError, match=r"certificate request of north: expected .* got one for 'CN=south'"):
        requests.load(path)


def test_an_owner_without_a_node_key_is_refused(north, tmp_path):
    """Without it the link could not know the node."""
    path = tmp_path / "request.json"
    path.write_text(resigned(north.request, north.signer, north.node_key, node=""))
    with pytest.raises(ConsortiumError, match="expected an EC P-384 key of an owner"):
        requests.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "nonsense",
        '{"request": 1, "proofs": 2}',
        "[" * 100_000,
        '{"request": {}, "proofs": {}}',
        "9" * 5000,
    ],
)
def test_what_is_no_request_is_refused(tmp_path, text):
    """Any bytes from outside give our error, never a stray one."""
    path = tmp_path / "request.json"
    path.write_text(text)
    with pytest.raises(ConsortiumError, match=r"request\.json: "):
        requests.load(path)


def test_a_request_with_a_surrogate_is_refused(north):
    """Half a character of UTF-16 in a text is an error of ours."""
    rewrite(north.folder / "request.json", ledger="\ud800")
    with pytest.raises(ConsortiumError, match=r"request\.json: expected JSON"):
        requests.load(north.folder / "request.json")


def test_a_whole_consortium_is_trusted_by_each_member(tmp_path):
    """Everybody signed: each one's own view of the roster is the same."""
    made = make(tmp_path, owners=2)
    assert {identity.trusted_roster(one).digest for one in made.members} == {made.roster.digest}


def test_a_strangers_roster_is_not_trusted(tmp_path):
    """A whole consortium with the same names, signed by its own members: another's key stands where mine should."""
    one = make(tmp_path / "one", owners=2)
    other = make(tmp_path / "other", owners=2)
    for name in ("roster.json", "ca.crt", "tls.crt"):
        shutil.copyfile(other.owners[0].folder / name, one.owners[0].folder / name)
    with pytest.raises(ConsortiumError, match=r"owner-0: signing: expected in the roster what .* asked for"):
        identity.trusted_roster(one.owners[0])


def test_foreign_and_swapped_certificates_are_not_trusted(tmp_path):
    """Another authority's certificate, another member's, and an earlier one of one's own."""
    made = make(tmp_path / "one", owners=2)
    other = make(tmp_path / "other", owners=2)
    own = made.owners[0]
    good = own.tls_certificate.read_bytes()
    for foreign in (other.owners[0].tls_certificate, made.owners[1].tls_certificate):
        shutil.copyfile(foreign, own.tls_certificate)
        with pytest.raises(ConsortiumError, match=r"tls.crt: expected a certificate of owner-0 .* got a foreign one"):
            identity.trusted_roster(own)
    authority = authorities.load_authority(made.folder.authority, made.folder.authority_key)
    own.tls_certificate.write_bytes(authorities.issue_member(authority, own.request.csr, name=own.name))
    with pytest.raises(ConsortiumError, match=r"tls.crt: expected the certificate that roster \d names, got another"):
        identity.trusted_roster(own)
    own.tls_certificate.write_bytes(good)
    shutil.copyfile(other.folder.authority, own.authority)
    with pytest.raises(ConsortiumError, match=r"ca.crt: expected the authority of sample, got another one"):
        identity.trusted_roster(own)
    own.authority.unlink()
    with pytest.raises(ConsortiumError, match=r"ca.crt: expected a certificate, got No such file"):
        identity.trusted_roster(own)


@pytest.mark.parametrize("field", ["node", "ledger", "address"])
def test_a_member_does_not_sign_what_it_did_not_ask_for(tmp_path, field):
    """The coordinator puts another node key, ledger or address into my place: I sign nothing."""
    made = make(tmp_path, owners=2, ledgers=True, witness=False)
    roster = made.roster
    value = {
        "node": keys.node_public_pem(keys.new_node_key()),
        "ledger": str(Signer.new("discreet/ledger/00").key),
        "address": "evil.example:1",
    }[field]
    place = roster.members[1].model_copy(update={field: value})
    forged = rosters.parse(
        roster.model_dump() | {"serial": 9, "members": [roster.members[0], place, roster.members[2]]}, name="forged"
    )
    rosters.write(tmp_path / "forged.json", forged, {})
    with pytest.raises(ConsortiumError, match=f"owner-0: {field}: expected in the roster what"):
        identity.sign_roster(made.owners[0], tmp_path / "forged.json")
    assert "owner-0" in rosters.missing_signatures(tmp_path / "forged.json")


def test_a_member_signs_neither_an_older_roster_nor_two_of_one_serial(tmp_path):
    """Different rosters for different members are found out by who is asked to sign both."""
    made = make(tmp_path, owners=1, witness=False)
    content = made.roster.model_dump()
    for serial, word in ((made.roster.serial - 1, "or newer"), (made.roster.serial, "another of the same serial")):
        other = rosters.parse(content | {"serial": serial, "members": list(content["members"])[::-1]}, name="other")
        rosters.write(tmp_path / "other.json", other, {})
        with pytest.raises(ConsortiumError, match=word):
            identity.sign_roster(made.owners[0], tmp_path / "other.json")
    assert rosters.missing_signatures(tmp_path / "other.json") == ("owner-0", "coordinator")


def test_rotation_leaves_no_day_without_keys(tmp_path):
    """The present keys work until the roster with the new ones is signed; then the new ones do."""
    made = make(tmp_path, owners=2)
    own = made.owners[0]
    coming = rotation.rotate(own.folder)
    assert identity.trusted_roster(identity.load(own.folder)).digest == made.roster.digest
    with pytest.raises(ConsortiumError, match="expected no identity, got one"):
        rotation.rotate(own.folder)
    with pytest.raises(ConsortiumError, match=r"roster.json: expected a file"):
        rotation.finish(own.folder)
    enrolment.add(made.folder, coming.folder / "request.json")
    assert identity.trusted_roster(identity.load(own.folder)).digest == made.roster.digest
    roster = sign_all(made.folder, [coming, *made.members[2:]])
    finished = rotation.finish(own.folder)
    assert finished.signer.key == coming.signer.key != own.signer.key
    assert identity.trusted_roster(finished).digest == roster.digest
    assert roster.owners[0].name == "owner-0"  # its place, and so its client number, is kept
    kept = own.folder / f"former-{roster.serial}"
    assert identity.load(kept).signer.key == own.signer.key
    assert not (own.folder / "next").exists()
    with pytest.raises(ConsortiumError, match="expected new keys, got none"):
        rotation.finish(own.folder)


@pytest.mark.parametrize("done", range(8))
def test_a_rotation_that_was_interrupted_goes_on(tmp_path, done):
    """Killed after any number of files were replaced: run again, it ends well, and the former keys are all kept."""
    made = make(tmp_path, owners=1, witness=False)
    own = made.owners[0]
    coming = rotation.rotate(own.folder)
    enrolment.add(made.folder, coming.folder / "request.json")
    sign_all(made.folder, [coming])
    former = own.folder / f"former-{made.roster.serial}"
    shutil.copytree(own.folder, former, ignore=shutil.ignore_patterns("next"))
    for name in rotation._FILES[:done]:
        shutil.copy2(coming.folder / name, own.folder / name)
    assert rotation.finish(own.folder).signer.key == coming.signer.key
    assert identity.load(former).signer.key == own.signer.key
    assert {stat.S_IMODE((own.folder / name).stat().st_mode) for name in PRIVATE} == {0o600}


def test_show_says_what_is_missing_and_nothing_private(north):
    """Before the coordinator answered: no certificate, no roster, and the line to read out."""
    shown = identity_folder.described(north.folder)
    assert shown["certificate_days"] is None
    assert "roster.json: expected a file" in shown["problem"]
    text = json.dumps(shown) + "\n".join(identity_folder.in_words(shown))
    assert str(north.signer.key) in text
    assert "PRIVATE" not in text


def test_show_counts_the_days_and_tells_an_expired_certificate(tmp_path):
    """364 whole days on the first; an expired certificate is told in words."""
    made = make(tmp_path, owners=2, expired=["owner-1"])
    shown = identity_folder.described(made.owners[0].folder)
    assert (shown["certificate_days"], shown["problem"], shown["serial"]) == (364, None, made.roster.serial)
    late = identity_folder.described(made.owners[1].folder)
    assert late["certificate_days"] == -2
    assert "expired" in late["problem"]
    assert "EXPIRED" in "\n".join(identity_folder.in_words(late))
    assert identity_folder.described(made.owners[0].folder, now=time() + 366 * DAY_S)["certificate_days"] < 0


def test_the_coordinators_own_identity_is_one_like_all(tmp_path):
    """Its certificate is for the address in the roster, and its place in the roster is its own request's."""
    folder = consortium_folder.init(tmp_path / "made", "study", addresses=["link.example:7000"])
    own = identity.load(folder.identity)
    assert own.role == "coordinator"
    assert certificates.hosts(own.tls_certificate.read_bytes()) == ("link.example",)
    assert identity.trusted_roster(own).coordinator.address == "link.example:7000"
