"""X.509 certificates as members read them, and TLS 1.3 with them.

    >>> key = keys.new_tls_key()
    >>> requested_key(request("north", key), name="north") == key.public_key()
    True

What issues them is `authority`. Bytes from outside give ConsortiumError, whatever the library makes of them.
"""

import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.consortium import keys
from common.errors import ConsortiumError

UNREADABLE = (  # all that `cryptography` raises for bytes from outside
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InvalidSignature,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def request(name: str, key: ec.EllipticCurvePrivateKey) -> str:
    """Return a certificate request (PEM): signed by the key, so that nobody asks for a certificate of another's."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(named(name))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def requested_key(csr: str, *, name: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a certificate request of this name; ConsortiumError if it is another's or forged."""
    wanted = f"certificate request of {name}: expected one on EC P-256, signed by its own key"
    remedy = "Ask for the request.json that `discreet identity new` wrote."
    try:
        found = x509.load_pem_x509_csr(csr.encode())
        key = found.public_key()
        is_signed = found.is_signature_valid
    except UNREADABLE as error:
        raise ConsortiumError(f"{wanted}, got none that reads. {remedy}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1) or not is_signed:
        raise ConsortiumError(f"{wanted}, got another. {remedy}")
    if found.subject != named(name):
        raise ConsortiumError(f"{wanted}, got one for {found.subject.rfc4514_string()!r}. {remedy}")
    return key


def fingerprint(pem: bytes | str) -> str:
    """SHA-256 of a certificate's DER, hexadecimal."""
    return _parsed(pem).fingerprint(hashes.SHA256()).hex()


def expires(pem: bytes | str) -> int:
    """Return the unix second from which a certificate is no longer valid."""
    return int(_parsed(pem).not_valid_after_utc.timestamp())


def hosts(pem: bytes | str) -> tuple[str, ...]:
    """Return the names and addresses that a certificate of a server is for."""
    try:
        found = _parsed(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNREADABLE:
        return ()
    return tuple(str(name.value) for name in found)


def is_authority(pem: bytes | str) -> bool:
    """Whether the text is the certificate of an authority that signed itself."""
    try:
        found = _parsed(pem)
        found.verify_directly_issued_by(found)
        return found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ConsortiumError, *UNREADABLE):
        return False


def is_certified(pem: bytes | str, *, authority: bytes | str, key: ec.EllipticCurvePublicKey) -> bool:
    """Whether the authority issued this certificate, for this key."""
    try:
        found = _parsed(pem)
        found.verify_directly_issued_by(_parsed(authority))
        return found.public_key() == key
    except (ConsortiumError, *UNREADABLE):
        return False


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return TLS 1.3 for a server; ConsortiumError when the files do not belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    keys.read_private(key)  # refuses a key that others may read
    try:
        context.load_cert_chain(certificate, key, password="")  # so that OpenSSL never asks a terminal
    except (OSError, ssl.SSLError) as error:
        raise ConsortiumError(
            f"{certificate}: expected a certificate and beside it its private key {key.name}, got files that do not "
            f"read or do not belong together. Bring both back, or make new ones."
        ) from error
    return context


def client_context(authority: Path) -> ssl.SSLContext:
    """Return TLS 1.3 for a client that trusts this authority alone and checks the server's name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise ConsortiumError(
            f"{authority}: expected the authority's certificate, got none that reads. Copy ca.crt from the coordinator."
        ) from error
    return context


def named(text: str) -> x509.Name:
    """Return a name as certificates have it."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # 64: the most that X.509 allows


def _parsed(pem: bytes | str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode() if isinstance(pem, str) else pem)
    except UNREADABLE as error:
        raise ConsortiumError("certificate: expected one in PEM, got another text. Copy it again.") from error
