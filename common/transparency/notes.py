"""Signed checkpoints: who says that a log has this size and this root.

    discreet.example/ledger/3f1c
    17
    qL0m...=                          the root, base64

    — discreet.example/ledger/3f1c Zm9v...=

Source: C2SP signed-note and tlog-checkpoint, https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint; the
signatures are Ed25519 (RFC 8032).
"""

import base64
import binascii
import re
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ALGORITHM = b"\x01"  # Ed25519
_ID_LENGTH = 4
_NAME = re.compile(r"[^\s+]{1,200}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")
_HASH_LENGTH = 32


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A log's state: its name, how many entries it has, and the root over them."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, kw_only=True)
class VerifierKey:
    """A public key with the name of who signs with it, written `name+id+key`."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"key name: expected text without spaces and plus signs, got {self.name!r}")

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read a key; ValueError for anything but a whole one."""
        name, _, rest = text.strip().partition("+")
        identifier, _, encoded = rest.partition("+")
        data = decoded(encoded)
        key = cls(name=name, public=data[1:])
        if data[:1] != _ALGORITHM or len(key.public) != _HASH_LENGTH or identifier != key.identifier.hex():
            raise ValueError("key: expected name+id+key of an Ed25519 key, got another text")
        return key

    def __str__(self) -> str:
        """Write the key as `parse` reads it."""
        return f"{self.name}+{self.identifier.hex()}+{base64.b64encode(_ALGORITHM + self.public).decode()}"

    @property
    def identifier(self) -> bytes:
        """Four bytes by which a signature names its key."""
        return sha256(self.name.encode() + b"\n" + _ALGORITHM + self.public).digest()[:_ID_LENGTH]

    def is_signed(self, data: bytes, signature: bytes) -> bool:
        """Whether this key made the signature over exactly these bytes."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """Holds an Ed25519 private key and the name it signs under."""

    def __init__(self, name: str, private: Ed25519PrivateKey) -> None:
        self._private = private
        raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.key = VerifierKey(name=name, public=raw)

    @classmethod
    def new(cls, name: str) -> "Signer":
        """Draw a new key from the operating system."""
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> "Signer":
        """Read a private key back; ValueError when it is not one of Ed25519."""
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except TypeError as error:
            raise ValueError("expected an Ed25519 private key without a password") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError("expected an Ed25519 private key")  # noqa: TRY004 - bytes from outside
        return cls(name, private)

    def pem(self) -> bytes:
        """Return the private key, for a file that only its owner reads."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign_bytes(self, data: bytes) -> bytes:
        """Return the bare signature of 64 bytes; what is signed must say by its first words what it is."""
        return self._private.sign(data)

    def sign(self, checkpoint: Checkpoint) -> str:
        """Return the signed note of a checkpoint."""
        text = checkpoint.text()
        signature = base64.b64encode(self.key.identifier + self._private.sign(text.encode())).decode()
        return f"{text}\n— {self.key.name} {signature}\n"


def read(note: str) -> Checkpoint:
    """Return what a note says, whoever signed it; ValueError unless it is exactly a checkpoint's note."""
    text, separator, signatures = note.partition("\n\n")
    lines = (text + "\n").split("\n")
    if not separator or not signatures.endswith("\n") or len(lines) != 4 or not _SIZE.fullmatch(lines[1]):  # noqa: PLR2004 - origin, size, root, end
        raise ValueError("checkpoint: expected origin, size, root, an empty line and signatures")
    if not lines[0] or not lines[0].isprintable():
        raise ValueError("checkpoint: expected an origin of printable text")
    checkpoint = Checkpoint(origin=lines[0], size=int(lines[1]), root=decoded(lines[2]))
    if len(checkpoint.root) != _HASH_LENGTH or checkpoint.text() != text + "\n":
        raise ValueError("checkpoint: expected a root of 32 bytes in base64")
    for line in signatures.removesuffix("\n").split("\n"):
        found = re.fullmatch(r"— [^\s+]+ ([A-Za-z0-9+/]+=*)", line)
        if found is None or not decoded(found[1]):
            raise ValueError("checkpoint: expected lines of signatures after the empty line")
    return checkpoint


def verify(note: str, key: VerifierKey) -> Checkpoint:
    """Return what a note says if `key` signed it; ValueError if it did not."""
    checkpoint = read(note)
    text, _, signatures = note.partition("\n\n")
    public = Ed25519PublicKey.from_public_bytes(key.public)
    for line in signatures.removesuffix("\n").split("\n"):
        _, name, encoded = line.split(" ")
        data = decoded(encoded)
        if name == key.name and data[:_ID_LENGTH] == key.identifier:
            try:
                public.verify(data[_ID_LENGTH:], (text + "\n").encode())
            except InvalidSignature as error:
                raise ValueError(f"checkpoint of size {checkpoint.size}: the signature is wrong") from error
            return checkpoint
    raise ValueError(f"checkpoint of size {checkpoint.size}: not signed by {key.name}")


def decoded(text: str) -> bytes:
    """Return what base64 text says; ValueError unless it is written in its one form."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("expected base64") from error
    if base64.b64encode(data).decode() != text:
        raise ValueError("expected base64 in its one form")
    return data
