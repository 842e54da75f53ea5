"""The authority of a consortium: who signs the certificates of the link and of each member.

    >>> authority = new_authority("study")
    >>> pem = issue_member(authority, certificates.request("north", keys.new_tls_key()), name="north")
    >>> certificates.expires(pem) > 0, len(certificates.fingerprint(pem))
    (True, 64)

EC P-256 throughout. All certificates begin five minutes ago, so that a clock that is a little late accepts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from time import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from common.consortium import certificates, keys
from common.consortium.certificates import UNREADABLE, named
from common.consortium.names import is_host
from common.errors import ConsortiumError

DAYS = 365
AUTHORITY_DAYS = 3652
LOCAL = ("localhost", "127.0.0.1")
_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Authority:
    """Who signs a consortium's certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate, for all."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def new_authority(consortium: str, *, now: float | None = None) -> Authority:
    """Make an authority for ten years; it signs certificates of members and servers, never another authority."""
    key = keys.new_tls_key()
    name = named(f"{consortium} authority")
    builder = _builder(name, key.public_key(), now=now, days=AUTHORITY_DAYS).issuer_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(is_authority=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Authority(certificate=builder.sign(key, hashes.SHA256()), key=key)


def load_authority(certificate: Path, key: Path) -> Authority:
    """Read an authority back, or raise ConsortiumError."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        public = found.public_key()
    except (OSError, *UNREADABLE) as error:
        raise ConsortiumError(
            f"{certificate}: expected the authority's certificate, got none that reads. Bring back the one that "
            f"`discreet consortium init` wrote."
        ) from error
    private = keys.read_tls_key(key)
    if public != private.public_key():
        raise ConsortiumError(
            f"{key}: expected the private key of {certificate}, got another one. Bring both back from one copy."
        )
    return Authority(certificate=found, key=private)


def issue_server(
    authority: Authority, key: ec.EllipticCurvePrivateKey, *, hosts: Sequence[str], now: float | None = None
) -> bytes:
    """Return the certificate (PEM) of a server of these names and IP addresses; localhost and 127.0.0.1 always."""
    names = tuple(dict.fromkeys((*hosts, *LOCAL)))
    _host(names[0])  # refuses what is no host before it becomes the certificate's name
    return _issue(authority, names[0], key.public_key(), hosts=names, now=now, is_client=False)


def issue_member(
    authority: Authority,
    csr: str,
    *,
    name: str,
    hosts: Sequence[str] = (),
    now: float | None = None,
    days: float = DAYS,
) -> bytes:
    """Return a member's certificate (PEM): of a client, and with `hosts` of a server too. ConsortiumError if unfit."""
    return _issue(authority, name, certificates.requested_key(csr, name=name), hosts=hosts, now=now, days=days)


def _issue(
    authority: Authority,
    name: str,
    key: ec.EllipticCurvePublicKey,
    *,
    hosts: Sequence[str],
    now: float | None,
    days: float = DAYS,
    is_client: bool = True,
) -> bytes:
    """Sign a certificate of a member or a server, which never outlives the authority."""
    issuer = authority.certificate
    builder = _builder(named(name), key, now=now, days=days, until=issuer.not_valid_after_utc)
    builder = builder.issuer_name(issuer.subject)
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH] * is_client + [ExtendedKeyUsageOID.SERVER_AUTH] * bool(hosts)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(is_authority=False), True),
        (x509.ExtendedKeyUsage(uses), False),
        (x509.SubjectKeyIdentifier.from_public_key(key), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(
    name: x509.Name, key: ec.EllipticCurvePublicKey, *, now: float | None, days: float, until: datetime | None = None
) -> x509.CertificateBuilder:
    moment = datetime.fromtimestamp(time() if now is None else now, UTC)
    end = moment + timedelta(days=days)
    end = end if until is None else min(end, until)
    builder = x509.CertificateBuilder().subject_name(name).public_key(key).serial_number(x509.random_serial_number())
    return builder.not_valid_before(min(moment, end) - _SKEW).not_valid_after(end)


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    if not is_host(text):
        raise ConsortiumError(f"{text!r}: expected a host's name or an IP address, got neither. Give --address again.")
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)
