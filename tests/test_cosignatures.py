"""Cosignatures: the published examples read as published, and what a witness did not sign does not verify."""

import base64
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from common.transparency.cosignatures import CosignerKey, cosign, verify_cosigned, with_line
from common.transparency.notes import Checkpoint, Signer, VerifierKey, read, verify

# C2SP tlog-cosignature: the example at its head, and its message.
EXAMPLE_TEXT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
EXAMPLE_LINE = (
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+"
    "mbIUBkBIfZ+qnA==\n"
)
EXAMPLE_NOTE = (
    f"{EXAMPLE_TEXT}\n— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gG"
    "zGku9nTo+zyWE+xeMcTOAYQ8=\n"
)
# transparency-dev/formats, note_cosigv1_test.go: a witness's key, and a log's key that is none.
REMORA = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
PLAIN = "TEST+7997405c+AQcC+FTVKf0jlTdHDY3rbevmnKxxPjigCXlVtGe6RIr6"

# RFC 8032, section 7.1, TEST 1: the private key of the witness in these tests, and its public half.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
WITNESS = Signer("witness.example/w1", Ed25519PrivateKey.from_private_bytes(SEED))
KEY = CosignerKey(key=WITNESS.key)
LOG = Signer("discreet/ledger/00ff", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
TEXT = f"discreet/ledger/00ff\n17\n{base64.b64encode(bytes(range(32))).decode()}\n"
NOTE = LOG.sign(Checkpoint(origin="discreet/ledger/00ff", size=17, root=bytes(range(32))))
TIME_S = 1_679_315_147
LINE = cosign(NOTE, WITNESS, time_s=TIME_S)


def data_of(line):
    """What the base64 at a line's end says."""
    return base64.b64decode(line.rstrip("\n").rpartition(" ")[2])


def line_of(data, name=WITNESS.key.name):
    """A line with any bytes."""
    return f"— {name} {base64.b64encode(data).decode()}\n"


def test_the_published_key_is_read_and_written_again():
    """A witness's key that is in use: algorithm 4, and the identifier that follows from name, algorithm and key."""
    key = CosignerKey.parse(REMORA)
    assert str(key) == REMORA
    assert key.name == "remora.n621.de"
    assert key.identifier.hex() == "da77ade7"


def test_the_published_cosignature_reads_as_the_specification_says():
    """Four bytes of identifier, then 1679315147 as eight bytes, then 64 bytes."""
    data = data_of(EXAMPLE_LINE)
    assert (len(data), int.from_bytes(data[4:12], "big")) == (4 + 8 + 64, 1_679_315_147)
    assert read(with_line(EXAMPLE_NOTE, EXAMPLE_LINE)).size == 20_852_163


def test_a_cosignature_is_what_the_specification_says_to_the_byte():
    """Built here by hand: SHA-256(name, newline, 4, key)[:4], the time, and Ed25519 over the two lines and the text."""
    private = Ed25519PrivateKey.from_private_bytes(SEED)
    message = b"cosignature/v1\ntime 1679315147\n" + TEXT.encode()
    identifier = sha256(b"witness.example/w1\n\x04" + PUBLIC).digest()[:4]
    assert data_of(LINE) == identifier + (1_679_315_147).to_bytes(8, "big") + private.sign(message)
    assert LINE.startswith("— witness.example/w1 ")
    assert WITNESS.key.public == PUBLIC


PINNED = (
    "— witness.example/w1 63YswgAAAABkGFDLsi6aLBKspsmdmbKEyHfu5qG03cqzI8xiy7TK+VCle336Yxp7Mo+MrOwqbYM4T+r"
    "uvECCKcQtEqmjbbHoA/R/DA==\n"
)


def test_a_cosignature_is_this_text():
    """Ed25519 is deterministic: this line never changes, whatever writes it."""
    assert LINE == PINNED


def test_a_cosigned_note_is_verified_with_its_time():
    """The log's own signature stays as it was, and a second witness changes nothing."""
    stranger = cosign(NOTE, Signer.new("witness.example/w2"), time_s=1)
    for note in (with_line(NOTE, LINE), with_line(with_line(NOTE, stranger), LINE)):
        cosigned = verify_cosigned(note, KEY)
        assert (cosigned.checkpoint, cosigned.time_s) == (read(NOTE), TIME_S)
        assert verify(note, LOG.key) == read(NOTE)


def test_of_two_cosignatures_of_one_witness_the_last_counts():
    """A note that is shown again is cosigned again."""
    later = cosign(NOTE, WITNESS, time_s=TIME_S + 1)
    assert verify_cosigned(with_line(with_line(NOTE, LINE), later), KEY).time_s == TIME_S + 1


@pytest.mark.parametrize("time_s", [0, 2**63 - 1])
def test_the_first_and_the_last_time_are_signed(time_s):
    """The specification allows times up to 2^63 - 1."""
    assert verify_cosigned(with_line(NOTE, cosign(NOTE, WITNESS, time_s=time_s)), KEY).time_s == time_s


@pytest.mark.parametrize("time_s", [-1, 2**63])
def test_no_other_time_is_signed(time_s):
    """Beyond it there is no such cosignature."""
    with pytest.raises(ValueError, match="time_s: expected 0 to"):
        cosign(NOTE, WITNESS, time_s=time_s)


@pytest.mark.parametrize("at", range(0, 76, 5))
def test_a_cosignature_with_a_flipped_bit_is_refused(at):
    """Whether in the identifier, the time or the signature."""
    data = bytearray(data_of(LINE))
    data[at] ^= 1
    with pytest.raises(ValueError, match="cosign"):
        verify_cosigned(with_line(NOTE, line_of(bytes(data))), KEY)


def test_a_time_beyond_the_last_is_refused_although_it_is_signed():
    """A u64 can say it, and the specification forbids it."""
    time_s = 2**63
    message = f"cosignature/v1\ntime {time_s}\n{TEXT}".encode()
    data = KEY.identifier + time_s.to_bytes(8, "big") + WITNESS.sign_bytes(message)
    with pytest.raises(ValueError, match="it is wrong"):
        verify_cosigned(with_line(NOTE, line_of(data)), KEY)


@pytest.mark.parametrize("length", [4, 5, 11, 12, 75, 77])
def test_a_cosignature_of_another_length_is_refused(length):
    """Not a byte less, and none more."""
    with pytest.raises(ValueError, match="it is wrong"):
        verify_cosigned(with_line(NOTE, line_of((data_of(LINE) + b"\0")[:length])), KEY)


def test_a_cosignature_of_another_note_is_refused():
    """What was signed is the whole text: origin, size and root."""
    for other in (TEXT.replace("17", "18"), TEXT.replace("00ff", "00fe"), TEXT.replace("AAEC", "BAEC")):
        note = NOTE.replace(TEXT, other)
        with pytest.raises(ValueError, match="it is wrong"):
            verify_cosigned(with_line(note, LINE), KEY)


def test_a_log_s_signature_is_no_cosignature_nor_the_other_way_round():
    """One Ed25519 key may sign notes and cosign them; neither passes for the other."""
    note = WITNESS.sign(read(NOTE))
    with pytest.raises(ValueError, match="not cosigned by"):
        verify_cosigned(note, KEY)
    with pytest.raises(ValueError, match="not signed by"):
        verify(with_line(NOTE, LINE), WITNESS.key)
    relabelled = line_of(KEY.identifier + TIME_S.to_bytes(8, "big") + WITNESS.sign_bytes(TEXT.encode()))
    with pytest.raises(ValueError, match="it is wrong"):
        verify_cosigned(with_line(NOTE, relabelled), KEY)


def test_another_witness_s_cosignature_does_not_count():
    """By name as by key."""
    for signer in (Signer.new(WITNESS.key.name), Signer("w2", Ed25519PrivateKey.from_private_bytes(SEED))):
        with pytest.raises(ValueError, match="not cosigned by"):
            verify_cosigned(with_line(NOTE, cosign(NOTE, signer, time_s=1)), KEY)


@pytest.mark.parametrize(
    "text",
    ["", "x", PLAIN, REMORA + "A", REMORA.replace("da77ade7", "da77ade8"), REMORA.replace("remora", "remorb"),
     REMORA.replace("+BO", "+CO"), REMORA[:-4], "a b" + REMORA, REMORA.partition("+")[2], "é".join(REMORA.split("e"))],
)  # fmt: skip
def test_what_is_no_witness_s_key_is_refused(text):
    """A log's key, a shortened one, one under another name or identifier."""
    with pytest.raises(ValueError, match=r"key|base64"):
        CosignerKey.parse(text)


@pytest.mark.parametrize("line", ["", "x\n", LINE + LINE, LINE.rstrip("\n"), "\n", "— w \n", "— w AAAA\n\n"])
def test_only_one_line_of_a_signature_is_added(line):
    """A witness that answers with more, or with something else, changes no note."""
    with pytest.raises(ValueError, match=r"checkpoint|cosignature|base64"):
        with_line(NOTE, line)


@pytest.mark.parametrize("text", ["", "x", TEXT, TEXT + "\n", NOTE.replace("17", "x")])
def test_what_is_no_checkpoint_s_note_is_not_cosigned(text):
    """A witness signs nothing that it does not understand."""
    with pytest.raises(ValueError, match="checkpoint"):
        cosign(text, WITNESS, time_s=1)


@given(name=st.from_regex(r"[a-z./0-9]{1,30}", fullmatch=True), seed=st.binary(min_size=32, max_size=32))
def test_every_key_comes_back_from_its_text(name, seed):
    """Writing and reading a key loses nothing."""
    key = CosignerKey(key=Signer(name, Ed25519PrivateKey.from_private_bytes(seed)).key)
    assert CosignerKey.parse(str(key)) == key
    assert VerifierKey.parse(str(key.key)).identifier != key.identifier


def test_any_ed25519_verifies_a_cosignature():
    """Checked here with the primitive alone, as a reader in another language would."""
    data = data_of(LINE)
    message = f"cosignature/v1\ntime {int.from_bytes(data[4:12], 'big')}\n{TEXT}".encode()
    Ed25519PublicKey.from_public_bytes(PUBLIC).verify(data[12:], message)
