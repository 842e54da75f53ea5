"""Private keys in files that only their owner reads.

Ed25519 for what is signed (`notes.Signer`), EC P-384 for Flower's node, EC P-256 for TLS: all PEM, PKCS8, 0600.
"""

import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import ConsortiumError
from common.transparency.notes import Signer

PrivateKey = ec.EllipticCurvePrivateKey  # a node's or of TLS
_LARGEST = 16_384  # bytes of a key's file
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def write_private(path: Path, pem: bytes) -> None:
    """Write a file that only its owner reads and that was not there, and wait for the disk."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError as error:
        raise ConsortiumError(
            f"{path}: expected no file, got one. A private key is never written over: move it away, or name another "
            f"folder."
        ) from error
    except OSError as error:
        raise ConsortiumError(
            f"{path}: expected to write a private key, got {error.strerror}. Is there room, may you write there?"
        ) from error


def read_private(path: Path) -> bytes:
    """Return a private key's file; ConsortiumError when it is missing or when others may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConsortiumError(
            f"{path}: expected a private key, got {error.strerror}. Bring it back from where it was put away."
        ) from error
    if mode & _OTHERS:
        raise ConsortiumError(
            f"{path}: expected a private key that only its owner may read (0600), got mode {stat.S_IMODE(mode):04o}. "
            f"Whoever could read it may have it: make new keys, or if nobody could, `chmod 600 {path}`."
        )
    return content


def new_node_key() -> ec.EllipticCurvePrivateKey:
    """Draw a key for Flower's node from the operating system."""
    return ec.generate_private_key(ec.SECP384R1())


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """Draw a key for TLS from the operating system."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as `read_node_key` and OpenSSL read it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key as Flower stores a node's: PEM, SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def node_public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the public half of a node's key, byte for byte as Flower compares it."""
    return public_pem(key.public_key())


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a node's private key back, or raise ConsortiumError."""
    return _read_elliptic(path, ec.SECP384R1())


def read_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key of TLS, or of the authority, back, or raise ConsortiumError."""
    return _read_elliptic(path, ec.SECP256R1())


def read_signer(path: Path, name: str) -> Signer:
    """Read a signing key back, or raise ConsortiumError."""
    try:
        return Signer.from_pem(name, read_private(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConsortiumError(
            f"{path}: expected an Ed25519 private key (PEM, without a password), got another file. Bring back the one "
            f"that `discreet identity new` wrote."
        ) from error


def is_node_public(pem: str) -> bool:
    """Whether the text is the public half of a node's key, in the one form that Flower writes."""
    try:
        return public_pem(_node_public(pem)) == pem
    except (ValueError, UnsupportedAlgorithm):
        return False


def prove(key: ec.EllipticCurvePrivateKey, statement: bytes) -> bytes:
    """Sign with a node's key, to show that one has it (ECDSA, SHA-384)."""
    return key.sign(statement, ec.ECDSA(hashes.SHA384()))


def is_proven(pem: str, statement: bytes, signature: bytes) -> bool:
    """Whether who holds the private half of a node's key signed the statement with it."""
    try:
        _node_public(pem).verify(signature, statement, ec.ECDSA(hashes.SHA384()))
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        return False
    return True


def _node_public(pem: str) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_public_key(pem.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("expected an EC P-384 key")  # noqa: TRY004 - bytes from outside
    return key


def _read_elliptic(path: Path, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_private(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != curve.name:
        raise ConsortiumError(
            f"{path}: expected a private key on {curve.name} (PEM, without a password), got another file. Bring back "
            f"the one that Discreet wrote."
        )
    return key
