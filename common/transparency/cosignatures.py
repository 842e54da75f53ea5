"""Cosignatures: a witness says when a log had which size and root, and that it only ever grew.

    — example.com/w1 jWbPPwAAAABkGFDL...       one line more below a checkpoint's note

What is signed is the note's text behind two lines that no other signature of ours begins with: `cosignature/v1` and the
time. One Ed25519 key may so sign notes and cosign: its two key texts and identifiers differ by the algorithm's byte.

Source: C2SP tlog-cosignature, the Ed25519 type, https://c2sp.org/tlog-cosignature.
"""

import base64
from dataclasses import dataclass
from hashlib import sha256

from common.transparency.notes import Checkpoint, Signer, VerifierKey, decoded, read

ALGORITHM = b"\x04"  # timestamped Ed25519 cosignature
_ID_LENGTH = 4
_TIME_LENGTH = 8
_KEY_LENGTH = 32
_SIGNATURE_LENGTH = 64
_LATEST = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Cosigned:
    """A checkpoint, and when a witness cosigned it, in seconds since 1970."""

    checkpoint: Checkpoint
    time_s: int


@dataclass(frozen=True, kw_only=True)
class CosignerKey:
    """A witness's public key with its name, written `name+id+key`."""

    key: VerifierKey

    @classmethod
    def parse(cls, text: str) -> "CosignerKey":
        """Read a witness's key; ValueError for anything but a whole one."""
        name, _, rest = text.strip().partition("+")
        identifier, _, encoded = rest.partition("+")
        data = decoded(encoded)
        key = cls(key=VerifierKey(name=name, public=data[1:]))
        if data[:1] != ALGORITHM or len(key.key.public) != _KEY_LENGTH or identifier != key.identifier.hex():
            raise ValueError("key: expected name+id+key of a witness's Ed25519 key, got another text")
        return key

    def __str__(self) -> str:
        """Write the key as `parse` reads it."""
        encoded = base64.b64encode(ALGORITHM + self.key.public).decode()
        return f"{self.name}+{self.identifier.hex()}+{encoded}"

    @property
    def name(self) -> str:
        """Under which the witness cosigns."""
        return self.key.name

    @property
    def identifier(self) -> bytes:
        """Four bytes by which a cosignature names its key."""
        return sha256(self.name.encode() + b"\n" + ALGORITHM + self.key.public).digest()[:_ID_LENGTH]


def cosign(note: str, signer: Signer, *, time_s: int) -> str:
    """Return the line by which a witness cosigns a note; ValueError unless it is a checkpoint's.

    Args:
        note: a checkpoint's signed note; what stands below its text is not looked at.
        signer: the witness's key.
        time_s: seconds since 1970.
    """
    read(note)
    if not 0 <= time_s <= _LATEST:
        raise ValueError(f"time_s: expected 0 to 2^63 - 1, got {time_s}")
    key = CosignerKey(key=signer.key)
    data = key.identifier + time_s.to_bytes(_TIME_LENGTH, "big") + signer.sign_bytes(_signed(note, time_s))
    return f"— {key.name} {base64.b64encode(data).decode()}\n"


def with_line(note: str, line: str) -> str:
    """Return a note with one more line below it; ValueError unless the result is a checkpoint's note."""
    if line.count("\n") != 1:
        raise ValueError("cosignature: expected one line")
    longer = note + line
    read(longer)
    return longer


def verify_cosigned(note: str, key: CosignerKey) -> Cosigned:
    """Return what a note says and when `key` cosigned it; ValueError if it did not.

    Of several cosignatures of one witness the last counts.
    """
    checkpoint = read(note)
    _, _, signatures = note.partition("\n\n")
    for line in reversed(signatures.removesuffix("\n").split("\n")):
        _, name, encoded = line.split(" ")
        data = decoded(encoded)
        if name == key.name and data[:_ID_LENGTH] == key.identifier:
            return Cosigned(checkpoint=checkpoint, time_s=_verified(note, data[_ID_LENGTH:], key))
    raise ValueError(f"checkpoint of size {checkpoint.size}: not cosigned by {key.name}")


def _verified(note: str, data: bytes, key: CosignerKey) -> int:
    """The time of a cosignature that is right."""
    time_s, signature = int.from_bytes(data[:_TIME_LENGTH], "big"), data[_TIME_LENGTH:]
    is_whole = len(signature) == _SIGNATURE_LENGTH and time_s <= _LATEST
    if not is_whole or not key.key.is_signed(_signed(note, time_s), signature):
        raise ValueError(f"cosignature of {key.name}: it is wrong")
    return time_s


def _signed(note: str, time_s: int) -> bytes:
    text, _, _ = note.partition("\n\n")
    return f"cosignature/v1\ntime {time_s}\n{text}\n".encode()
