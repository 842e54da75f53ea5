"""Signed checkpoints: the published examples verify, and what is not exactly a checkpoint's note does not."""

import base64

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from common.transparency.notes import Checkpoint, Signer, VerifierKey, read, verify

# golang.org/x/mod/sumdb/note, note.go and note_test.go.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_PRIVATE = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"  # 1, then the seed
PETER_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"  # published
)
PETER_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
# C2SP signed-note, section Example.
SPECIFIED = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPECIFIED_SIGNATURE = "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
# The Go checksum database: its key (cmd/go, modfetch/key.go), and what sum.golang.org/latest said on 9 January 2023.
GO_KEY = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
GO_ROOT = "gJyioq6dwR9n+NjEWORfYmH+ubeYm3kH42BBQ0bTpYI="
GO_SIGNATURE = "Az3grp1rvWOs5NKlr/xR4GLN/CDyzzakmt1o61uSxYKpK1SerqOP2ClbX/peKUZjYnyomH5Xz7GZG3TpB7OeKn4E2ww="
GO_NOTE = f"go.sum database tree\n15067302\n{GO_ROOT}\n\n— sum.golang.org {GO_SIGNATURE}\n"
COSIGNATURE = (  # of a stranger, below the same note
    "— test.example.com qTGhC/xIPQ0AXKHK6Y+9ypRfuvMZWPjRXM8NiOg5M1WREn07VQXyuIXM3NRNav3ieVFLUqDRK77PWDmL6w8w84UqeAw=\n"
)

NAME = "discreet/ledger/00ff"
SIGNER = Signer(NAME, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
STATE = Checkpoint(origin=NAME, size=17, root=bytes(range(32)))
NOTE = SIGNER.sign(STATE)
ROOT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="  # 0 to 31


def signature_of(text, signer=SIGNER):
    """The line by which a signer signs any text."""
    data = signer.key.identifier + signer._private.sign(text.encode())
    return f"— {signer.key.name} {base64.b64encode(data).decode()}\n"


def signed(text):
    """A note of any text, truly signed: what is wrong with it is its form."""
    return f"{text}\n{signature_of(text)}"


@pytest.mark.parametrize("text", [PETER, SPECIFIED, GO_KEY])
def test_published_keys_are_read_and_written_again(text):
    """The verifier keys of Go's note package, of the C2SP specification and of the Go checksum database."""
    key = VerifierKey.parse(text)
    assert str(key) == text
    assert text.startswith(f"{key.name}+{key.identifier.hex()}+")


def test_the_published_private_key_signs_as_published():
    """Ed25519 is deterministic: Go's example key gives Go's example signature."""
    private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(PETER_PRIVATE)[1:])
    signer = Signer("PeterNeumann", private)
    assert str(signer.key) == PETER
    assert signature_of(PETER_TEXT, signer) == f"— PeterNeumann {PETER_SIGNATURE}\n"


@pytest.mark.parametrize(
    ("key", "text", "signature"),
    [(PETER, PETER_TEXT, PETER_SIGNATURE), (SPECIFIED, "This is an example message.\n", SPECIFIED_SIGNATURE)],
)
def test_published_signatures_are_of_the_published_keys(key, text, signature):
    """The first four bytes name the key, the rest is its Ed25519 signature of the text."""
    parsed, data = VerifierKey.parse(key), base64.b64decode(signature)
    assert data[:4] == parsed.identifier
    Ed25519PublicKey.from_public_bytes(parsed.public).verify(data[4:], text.encode())


def test_a_published_checkpoint_verifies():
    """What the Go checksum database signed is read and verified, a cosignature below it or not."""
    state = Checkpoint(origin="go.sum database tree", size=15067302, root=base64.b64decode(GO_ROOT))
    assert verify(GO_NOTE, VerifierKey.parse(GO_KEY)) == state
    assert verify(GO_NOTE + COSIGNATURE, VerifierKey.parse(GO_KEY)) == state
    with pytest.raises(ValueError, match="signature is wrong"):
        verify(GO_NOTE.replace("15067302", "15067301"), VerifierKey.parse(GO_KEY))


def test_no_part_of_a_key_is_a_key():
    """As in Go's own test: any cut, and any byte one higher, is refused."""
    cuts = {PETER[start:end] for start in range(len(PETER)) for end in range(start, len(PETER) + 1)} - {PETER}
    nudged = {PETER[:i] + chr(ord(PETER[i]) + 1) + PETER[i + 1 :] for i in range(len(PETER))}
    for text in cuts | nudged:
        with pytest.raises(ValueError, match=r".*"):
            VerifierKey.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "++",
        "a",
        PETER + "=",
        PETER.replace("c74f20a3", "C74F20A3"),
        PETER.replace("+c7", "++c7"),
        PETER.replace("PeterNeumann", "Peter Neumann"),
        PETER.replace("PeterNeumann", "Peter\u2003Neumann"),
        PETER.replace("PeterNeumann", ""),
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",  # too long, its own id (Go)
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",  # unknown algorithm, its own id (Go)
    ],
)
def test_a_malformed_key_is_refused(text):
    """A key is name, identifier and 32 bytes of Ed25519, in one spelling."""
    with pytest.raises(ValueError, match=r"key|base64"):
        VerifierKey.parse(text)


@given(text=st.text(max_size=60))
def test_no_text_breaks_the_reader_of_keys(text):
    """Whatever a file holds reads as a key or raises ValueError."""
    with pytest.raises(ValueError, match=r".*"):
        VerifierKey.parse(text)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\n", "a\u00a0b", "a" * 201])
def test_a_key_name_has_no_space_and_no_plus(name):
    """Such a name could not be told from what follows it."""
    with pytest.raises(ValueError, match="key name"):
        VerifierKey(name=name, public=bytes(32))


def test_a_note_is_text_an_empty_line_and_a_signature():
    """The whole of a note, byte by byte."""
    assert f"{NAME}\n17\n{ROOT}\n\n{signature_of(STATE.text())}" == NOTE


@given(size=st.integers(0, 2**53 - 1), root=st.binary(min_size=32, max_size=32))
def test_what_is_signed_is_verified(size, root):
    """A checkpoint comes back equal from its note, read or verified."""
    state = Checkpoint(origin=NAME, size=size, root=root)
    note = SIGNER.sign(state)
    assert read(note) == verify(note, SIGNER.key) == state


@given(position=st.integers(0, len(NOTE) - 1), character=st.characters(exclude_categories=["Cs"]))
def test_any_other_character_is_refused(position, character):
    """No character of a note can be exchanged for another one."""
    other = NOTE[:position] + character + NOTE[position + 1 :]
    if other == NOTE:
        assert verify(other, SIGNER.key) == STATE
        return
    with pytest.raises(ValueError, match=r".*"):
        verify(other, SIGNER.key)


@given(
    position=st.integers(0, len(NOTE)), text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3)
)
def test_anything_put_in_is_refused(position, text):
    """A note has one form: nothing can be added in between."""
    with pytest.raises(ValueError, match=r".*"):
        verify(NOTE[:position] + text + NOTE[position:], SIGNER.key)


@pytest.mark.parametrize("length", range(len(NOTE)))
def test_a_note_that_was_cut_off_is_refused(length):
    """At every length."""
    with pytest.raises(ValueError, match=r".*"):
        verify(NOTE[:length], SIGNER.key)


@pytest.mark.parametrize(
    "text",
    [
        f"{NAME}\n17\n",
        f"{NAME}\n17\n{ROOT}\nextension\n",
        f"{NAME}\n017\n{ROOT}\n",
        f"{NAME}\n-1\n{ROOT}\n",
        f"{NAME}\n+17\n{ROOT}\n",
        f"{NAME}\n1_7\n{ROOT}\n",
        f"{NAME}\n17 \n{ROOT}\n",
        f"{NAME}\n17.0\n{ROOT}\n",
        f"{NAME}\n\u0661\u0667\n{ROOT}\n",  # digits, but not ASCII's
        f"{NAME}\n{'9' * 17}\n{ROOT}\n",
        f"{NAME}\n17\n{ROOT[:-1]}\n",
        f"{NAME}\n17\n{ROOT[:-2]}9=\n",  # the same 32 bytes, spelt another way
        f"{NAME}\n17\n{ROOT[:-4]}\n",
        f"{NAME}\n17\n{ROOT} \n",
        f"{NAME}\n17\n{ROOT.replace('A', '_', 1)}\n",
        f"{NAME}\r\n17\r\n{ROOT}\r\n",
        f"\n17\n{ROOT}\n",
        f"{NAME}\t\n17\n{ROOT}\n",
        f"17\n{ROOT}\n",
        "\n",
    ],
)
def test_a_signed_text_that_is_no_checkpoint_is_refused(text):
    """Origin, size and root, each in its one form: a true signature does not help."""
    with pytest.raises(ValueError, match=r".*"):
        verify(signed(text), SIGNER.key)


@pytest.mark.parametrize(
    "note",
    [
        NOTE.replace("\n\n", "\n"),
        NOTE.replace("\n\n", "\n\n\n"),
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("—", "-"),
        NOTE.replace("— ", "—"),
        NOTE.replace(" discreet", "  discreet"),
        NOTE[:-1] + " \n",
        NOTE[:-1] + "\r\n",
        NOTE[:-1] + "\x0c\n",
        NOTE[:-1] + "\u2028\n",
        NOTE + "\n",
        NOTE + "a line\n",
        NOTE + "— other +++\n",
        NOTE.split("\n\n")[0] + "\n\n",
        NOTE.split("\n\n")[0] + "\n\n\n",
        NOTE.split("\n\n")[0] + "\n\n— a AAAA\u2028— b AAAA\n",
        NOTE.split("\n\n")[1],
    ],
)
def test_a_malformed_note_is_refused(note):
    """Lines end with a line feed alone; what follows the empty line is signatures, and at least one."""
    for check in (read, lambda text: verify(text, SIGNER.key)):
        with pytest.raises(ValueError, match=r".*"):
            check(note)


@pytest.mark.parametrize(
    "data", [b"", b"\0", bytes(4), bytes(68), SIGNER.key.identifier, SIGNER.key.identifier + bytes(64)]
)
def test_a_signature_that_is_none_is_refused(data):
    """Too short, of nobody, or of zeros under the right identifier."""
    note = f"{STATE.text()}\n— {NAME} {base64.b64encode(data).decode()}\n"
    with pytest.raises(ValueError, match=r"not signed|signature"):
        verify(note, SIGNER.key)


def test_another_signer_of_the_same_name_is_refused():
    """A name proves nothing: the identifier holds the key."""
    forged = Signer.new(NAME).sign(STATE)
    assert read(forged) == STATE  # it is a checkpoint, of somebody
    with pytest.raises(ValueError, match=f"size 17: not signed by {NAME}"):
        verify(forged, SIGNER.key)


def test_a_key_signs_under_one_name():
    """The identifier holds the name too: the same key under another name is another signer."""
    other = Signer("other", SIGNER._private)
    assert other.key.public == SIGNER.key.public
    assert other.key.identifier != SIGNER.key.identifier
    with pytest.raises(ValueError, match="not signed by"):
        verify(other.sign(STATE), SIGNER.key)


def test_strangers_may_sign_beside():
    """Cosignatures before or after ours do not matter, whatever they are worth."""
    text, _, ours = NOTE.partition("\n\n")
    witness = "— witness.example AAAAAAAA\n"
    for block in (ours + witness, witness + ours):
        assert verify(f"{text}\n\n{block}", SIGNER.key) == STATE


def test_a_private_key_comes_back_from_its_file():
    """Written as PEM and read again, it signs the same."""
    again = Signer.from_pem(NAME, SIGNER.pem())
    assert again.key == SIGNER.key
    assert again.sign(STATE) == NOTE


def test_new_keys_differ():
    """Two keys of one name are two keys, drawn from the operating system."""
    assert Signer.new(NAME).key != Signer.new(NAME).key


def _pem(key, encryption):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"garbage",
        SIGNER.pem()[:-30],
        _pem(generate_private_key(SECP256R1()), serialization.NoEncryption()),
        _pem(Ed25519PrivateKey.generate(), serialization.BestAvailableEncryption(b"secret")),
    ],
)
def test_a_file_that_is_no_private_key_is_refused(pem):
    """Empty, garbled, cut off, of another algorithm, or under a password."""
    with pytest.raises(ValueError, match=r".*"):
        Signer.from_pem(NAME, pem)
