"""Certificates: what the authority signs is accepted over TLS 1.3, what it did not sign, or is over, is refused."""

import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from time import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from common.consortium import authority as authorities
from common.consortium import certificates, keys
from common.errors import ConsortiumError
from server import consortium_folder

DAY_S = 86_400
AUTHORITY = authorities.new_authority("study", now=1_800_000_000)
ASKED = keys.new_tls_key()
REQUEST = certificates.request("north", ASKED)


@pytest.fixture
def made(tmp_path):
    """A consortium of its coordinator alone."""
    return consortium_folder.init(tmp_path / "made", "study", addresses=["link.example", "[::1]:9443", "10.0.0.1"])


def talk(server, client, *, name="localhost"):
    """Let a client and a server shake hands over a real socket, and say one word; return the version of TLS."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        with listener, listener.accept()[0] as plain:
            try:
                with server.wrap_socket(plain, server_side=True) as secure:
                    secure.sendall(b"word")
            except OSError:
                pass  # the client says what was wrong

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with (
            socket.create_connection(listener.getsockname(), timeout=10) as plain,
            client.wrap_socket(plain, server_hostname=name) as secure,
        ):
            assert secure.recv(4) == b"word"  # read first: what a server that refused had not read would hide its alert
            return secure.version()
    finally:
        thread.join()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "link.example", "::1", "10.0.0.1"])
def test_a_client_reaches_the_server_by_each_of_its_names(made, name):
    """Names and IP addresses, localhost and 127.0.0.1 always; TLS 1.3 with the strict rules of RFC 5280."""
    server = certificates.server_context(made.server_certificate, made.server_key)
    assert talk(server, certificates.client_context(made.authority), name=name) == "TLSv1.3"


def test_another_name_is_refused(made):
    """The certificate is right, but of another host."""
    server = certificates.server_context(made.server_certificate, made.server_key)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        talk(server, certificates.client_context(made.authority), name="other.example")


def test_older_versions_of_tls_are_refused_by_both(made):
    """A server of ours refuses a client of TLS 1.2, and a client of ours such a server."""
    old_client = ssl.create_default_context(cafile=made.authority)
    old_client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        talk(certificates.server_context(made.server_certificate, made.server_key), old_client)
    old_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old_server.load_cert_chain(made.server_certificate, made.server_key)
    old_server.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        talk(old_server, certificates.client_context(made.authority))


def test_an_expired_server_is_refused_and_renewed(made):
    """A certificate of 400 days ago is over; `renew` keeps the key and all names."""
    names = certificates.hosts(made.server_certificate.read_bytes())
    consortium_folder.renew(made, now=time() - 400 * DAY_S)
    client = certificates.client_context(made.authority)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        talk(certificates.server_context(made.server_certificate, made.server_key), client)
    end = consortium_folder.renew(made)
    assert 364 * DAY_S < end - time() <= 365 * DAY_S
    assert certificates.hosts(made.server_certificate.read_bytes()) == names
    assert set(names) == {"link.example", "::1", "10.0.0.1", "localhost", "127.0.0.1"}
    assert talk(certificates.server_context(made.server_certificate, made.server_key), client) == "TLSv1.3"


def test_a_foreign_server_is_refused(made, tmp_path):
    """Another consortium of the same name has another authority."""
    other = consortium_folder.init(tmp_path / "other", "study")
    server = certificates.server_context(other.server_certificate, other.server_key)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        talk(server, certificates.client_context(made.authority))


def test_a_members_certificate_is_no_servers(made):
    """An owner cannot pose as the link: its certificate is for clients alone."""
    key = keys.new_tls_key()
    authority = authorities.load_authority(made.authority, made.authority_key)
    pem = authorities.issue_member(authority, certificates.request("localhost", key), name="localhost")
    (made.path / "own.crt").write_bytes(pem)
    keys.write_private(made.path / "own.key", keys.private_pem(key))
    server = certificates.server_context(made.path / "own.crt", made.path / "own.key")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unsuitable certificate purpose|mismatch"):
        talk(server, certificates.client_context(made.authority))


def test_a_member_cannot_sign_certificates(made):
    """A certificate below a member's is refused: the chain ends at the authority, path length 0."""
    authority = authorities.load_authority(made.authority, made.authority_key)
    key = keys.new_tls_key()
    csr = certificates.request("north", key)
    member = x509.load_pem_x509_certificate(authorities.issue_member(authority, csr, name="north"))
    usurper = authorities.Authority(certificate=member, key=key)
    own = keys.new_tls_key()
    (made.path / "chain.crt").write_bytes(authorities.issue_server(usurper, own, hosts=()) + usurper.pem)
    keys.write_private(made.path / "chain.key", keys.private_pem(own))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"invalid CA|verify failed"):
        talk(
            certificates.server_context(made.path / "chain.crt", made.path / "chain.key"),
            certificates.client_context(made.authority),
        )


def mutual(made):
    """A server that asks each client for a certificate of the authority."""
    context = certificates.server_context(made.server_certificate, made.server_key)
    context.load_verify_locations(made.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_of(made, tmp_path, *, authority=None, now=None):
    """A client with a member's certificate."""
    key = keys.new_tls_key()
    signs = authority or authorities.load_authority(made.authority, made.authority_key)
    pem = authorities.issue_member(signs, certificates.request("north", key), name="north", now=now)
    (tmp_path / "client.crt").write_bytes(pem)
    keys.write_private(tmp_path / "client.key", keys.private_pem(key))
    context = certificates.client_context(made.authority)
    context.load_cert_chain(tmp_path / "client.crt", tmp_path / "client.key")
    return context


def test_a_member_is_accepted_by_mutual_tls(made, tmp_path):
    """A member's certificate is one of a client."""
    assert talk(mutual(made), client_of(made, tmp_path)) == "TLSv1.3"


def test_an_expired_or_foreign_member_is_refused_by_mutual_tls(made, tmp_path):
    """A certificate that is over, and one of another authority."""
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.expired"):
        talk(mutual(made), client_of(made, tmp_path, now=time() - 400 * DAY_S))
    (tmp_path / "client.key").unlink()
    with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca|decrypt.error"):
        talk(mutual(made), client_of(made, tmp_path, authority=authorities.new_authority("study")))


def test_openssl_accepts_the_chain(made):
    """An independent reader: openssl verify, with its strict rules."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", made.authority]
    done = subprocess.run([*command, made.server_certificate], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_certificates_begin_five_minutes_ago_and_never_outlive_the_authority(tmp_path):
    """A clock that is late by less accepts them; after nine years and a half they end with the authority's."""
    start = 1_800_000_000
    authority = authorities.new_authority("study", now=start)
    csr = certificates.request("north", keys.new_tls_key())
    pem = authorities.issue_member(authority, csr, name="north", now=start)
    found = x509.load_pem_x509_certificate(pem)
    assert found.not_valid_before_utc.timestamp() == start - 300
    assert certificates.expires(pem) == start + 365 * DAY_S
    late = authorities.issue_member(authority, csr, name="north", now=start + 3_600 * DAY_S)
    assert certificates.expires(late) == certificates.expires(authority.pem) == start + 3652 * DAY_S


def test_a_fingerprint_is_that_of_openssl(made):
    """SHA-256 of the DER, as every tool prints it."""
    pem = made.server_certificate.read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    assert certificates.fingerprint(pem) == digest.finalize().hex() == certificates.fingerprint(pem.decode())


def csr_of(key, name="north", algorithm=None):
    builder = x509.CertificateSigningRequestBuilder().subject_name(certificates.named(name))
    made = builder.sign(key, algorithm or hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def forged_csr():
    """A request in which the public key of another stands: the signature is no longer its own."""
    mine = x509.load_pem_x509_csr(csr_of(keys.new_tls_key()).encode())
    der = mine.public_bytes(serialization.Encoding.DER)
    own, other = (
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        for key in (mine.public_key(), keys.new_tls_key().public_key())
    )
    assert der.count(own) == 1
    changed = x509.load_der_x509_csr(der.replace(own, other))
    return changed.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    "csr",
    [
        "",
        "nonsense",
        "\ud800",
        csr_of(keys.new_tls_key(), "south"),
        csr_of(keys.new_node_key()),
        csr_of(ec.generate_private_key(ec.SECP256K1())),
        csr_of(rsa.generate_private_key(65537, 2048)),
        forged_csr(),
    ],
    ids=["empty", "nonsense", "surrogate", "another's", "P-384", "other curve", "RSA", "another's key"],
)
def test_an_unfit_request_gets_no_certificate(csr):
    """Another name, another curve, another algorithm, another's key: one error each, and never a stray one."""
    with pytest.raises(ConsortiumError, match="certificate request of north: expected"):
        authorities.issue_member(authorities.new_authority("study"), csr, name="north")


@pytest.mark.parametrize("host", ["bad host", "a\nb", "-x.example", "x..y", "fe80::1%eth0", "", "*.example"])
def test_a_certificate_is_for_hosts_alone(host):
    """What is no host's name and no address gets into no certificate; nor does a wildcard."""
    with pytest.raises(ConsortiumError, match="expected a host's name"):
        authorities.issue_server(authorities.new_authority("study"), keys.new_tls_key(), hosts=[host])


def test_an_authority_with_another_key_is_refused(made, tmp_path):
    """ca.crt of one copy and ca.key of another."""
    keys.write_private(tmp_path / "other.key", keys.private_pem(keys.new_tls_key()))
    with pytest.raises(ConsortiumError, match=r"expected the private key of .*ca\.crt, got another one"):
        authorities.load_authority(made.authority, tmp_path / "other.key")
    made.authority.write_text("nonsense")
    with pytest.raises(ConsortiumError, match="expected the authority's certificate"):
        authorities.load_authority(made.authority, made.authority_key)


def test_what_is_no_authority_is_told(made):
    """A member's certificate, a text, an empty text."""
    assert certificates.is_authority(made.authority.read_bytes())
    assert not certificates.is_authority(made.server_certificate.read_bytes())
    assert not certificates.is_authority("nonsense")
    with pytest.raises(ConsortiumError, match="certificate: expected one in PEM"):
        certificates.fingerprint("nonsense")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(place=st.integers(0, 2_000), value=st.integers(0, 255))
def test_a_changed_byte_of_a_certificate_or_a_request_gives_no_stray_error(place, value):
    """Inside the DER, where parsers are tried: our error or an answer, and never another's key."""
    for pem, label, read in ((AUTHORITY.pem, "CERTIFICATE", reads), (REQUEST.encode(), "CERTIFICATE REQUEST", asks)):
        der = bytearray(ssl.PEM_cert_to_DER_cert(pem.decode().replace(" REQUEST", "")))
        der[place % len(der)] = value
        with suppress(ConsortiumError):
            read(ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", label))


def asks(text):
    """Ask for the key of a request; it is the one that made it, or none."""
    assert certificates.requested_key(text, name="north") == ASKED.public_key()


def reads(text):
    """Ask everything that is asked of a certificate."""
    certificates.is_authority(text)
    certificates.is_certified(text, authority=AUTHORITY.pem, key=AUTHORITY.key.public_key())
    certificates.is_certified(AUTHORITY.pem, authority=text, key=AUTHORITY.key.public_key())
    certificates.hosts(text)
    certificates.fingerprint(text)
    certificates.expires(text)


def test_contexts_refuse_files_that_do_not_belong_together(made, tmp_path):
    """A missing file, a foreign key, a key with a password (nobody is asked for it), a key that others may read."""
    with pytest.raises(ConsortiumError, match=r"ca.crt: expected the authority's certificate"):
        certificates.client_context(tmp_path / "ca.crt")
    keys.write_private(tmp_path / "other.key", keys.private_pem(keys.new_tls_key()))
    with pytest.raises(ConsortiumError, match=r"expected a certificate and beside it its private key other\.key"):
        certificates.server_context(made.server_certificate, tmp_path / "other.key")
    locked = keys.new_tls_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    keys.write_private(tmp_path / "locked.key", locked)
    with pytest.raises(ConsortiumError, match=r"expected a certificate and beside it its private key locked\.key"):
        certificates.server_context(made.server_certificate, tmp_path / "locked.key")
    made.server_key.chmod(0o640)
    with pytest.raises(ConsortiumError, match=r"only its owner may read \(0600\), got mode 0640"):
        certificates.server_context(made.server_certificate, made.server_key)
