"""Asks a witness to cosign the owner's ledger, and tells apart why it does not.

    WitnessDownError    it does not answer, or not in time
    RolledBackError     it has cosigned more than the ledger has: an older copy was restored
    ForkedError         the ledger's past is not the one that it has cosigned
    WitnessError        it refuses: no member, no ledger of the roster

Beside the ledger NAME lies NAME.cosigned, the newest cosigned checkpoint. That the witness has seen more is never taken
from its word: it shows the note, which the ledger's own key signed.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc

from common import witness_wire as wire
from common.consortium import certificates, keys
from common.consortium.identity import Identity
from common.consortium.members import Roster
from common.errors import ConsortiumError, ForkedError, LedgerError, WireError, WitnessDownError, WitnessError
from common.files import write_whole
from common.ledger import Ledger
from common.transparency.cosignatures import CosignerKey, verify_cosigned, with_line
from common.transparency.notes import Checkpoint, VerifierKey, verify

Answer = TypeVar("Answer")

log = logging.getLogger("discreet.witness")

TIMEOUT_S = 10.0
_ATTEMPTS = 4  # when other processes of the owner have the ledger cosigned meanwhile
_OPTIONS = (
    ("grpc.max_receive_message_length", wire.LARGEST_MESSAGE),
    ("grpc.max_send_message_length", wire.LARGEST_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_DOWN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
}


def cosigned_file(ledger: Path) -> Path:
    """Return where a ledger's newest cosigned checkpoint is kept."""
    real = ledger.resolve()
    return real.with_name(real.name + ".cosigned")


class Witness:
    """One witness, asked over one channel.

    Guarantees:
        When `cosign` returns, the witness has cosigned the ledger as it was or a later state of it, and the cosigned
        note is on the disk.
        Every call ends within `timeout_s`.
    """

    def __init__(
        self, address: str, *, name: str, key: VerifierKey, identity: Identity, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Remember where the witness is; nothing is sent yet.

        Args:
            address: host:port, as in the roster.
            name: of the witness.
            key: its signing key, as in the roster.
            identity: who asks.
            timeout_s: the most that one call may take.
        """
        self.name, self.address = name, address
        self._key, self._identity, self._timeout_s = CosignerKey(key=key), identity, timeout_s
        self._channel: Any = None

    @classmethod
    def listed(cls, name: str, *, roster: Roster, identity: Identity, timeout_s: float = TIMEOUT_S) -> "Witness":
        """Return the witness of this name in a roster, or raise ConsortiumError."""
        member = roster.witness(name)
        if not member.address:
            raise ConsortiumError(f"{name}: expected a witness with an address, got none. Let it be added again.")
        return cls(member.address, name=name, key=member.key, identity=identity, timeout_s=timeout_s)

    def close(self) -> None:
        """Let go of the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def cosign(self, ledger: Ledger) -> None:
        """Have the ledger's newest checkpoint cosigned, or raise WitnessError.

        Guarantees:
            Nothing is written to the ledger.

        Edge cases:
            empty ledger                        nothing to cosign; RolledBackError if the witness has seen entries
            the witness has cosigned it before  it does so again
            the witness has lost its memory     a warning, and it begins anew with all of the ledger

        Raises:
            WitnessDownError, RolledBackError, ForkedError: as above.
            LedgerError: the ledger is not whole.
        """
        seen = self._kept(ledger) or self._latest_of(ledger)
        for _ in range(_ATTEMPTS):
            size = seen.size if seen else 0
            if not size and not ledger.books.size:
                return
            extension = ledger.extension(size)
            conflict = self._add(ledger, wire.Addition(old_size=size, proof=extension.proof, note=extension.note))
            if conflict is None:
                return
            if conflict.word == "fork":
                raise self._forked(ledger, conflict.size)
            if conflict.size < size:
                log.warning("witness %s has cosigned %d entries and knows of %d", self.name, size, conflict.size)
            seen = self._latest_of(ledger)
        raise WitnessError(f"{self.name}: the witness says one size and cosigned another. Ask who runs it.")

    def latest(self, key: VerifierKey) -> wire.Newest:
        """Return what the witness cosigned last of a ledger, checked; `note` is "" when it knows none.

        Raises:
            WitnessError: it does not answer, or with a note that it, or the ledger, did not sign.
        """
        try:
            newest = self._call(wire.LATEST, wire.encode(wire.Question(ledger=str(key))), wire.decode_newest)
        except grpc.RpcError as error:
            raise self._refused(error) from error
        try:
            for note in (newest.note, *newest.forks):
                if note and verify(note, key).origin != key.name:
                    raise ValueError("another ledger's")  # noqa: TRY301 - one way out for all
            if newest.note:
                verify_cosigned(newest.note, self._key)
        except ValueError as error:
            raise WitnessError(f"{self.name}: the witness shows a checkpoint that is not right ({error}).") from error
        return newest

    def _latest_of(self, ledger: Ledger) -> Checkpoint | None:
        note = self.latest(ledger.key).note
        return verify(note, ledger.key) if note else None

    def _kept(self, ledger: Ledger) -> Checkpoint | None:
        """What the witness cosigned last, as far as this disk knows."""
        with suppress(OSError, ValueError):
            note = cosigned_file(ledger.path).read_text(encoding="utf-8")
            verify_cosigned(note, self._key)
            return verify(note, ledger.key)
        return None

    def _add(self, ledger: Ledger, addition: wire.Addition) -> wire.Conflict | None:
        try:
            line = self._call(wire.ADD_CHECKPOINT, wire.encode(addition), wire.decode_cosigning).line
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise self._refused(error) from error
            return self._conflict(error)
        try:
            note = with_line(addition.note, line)
            verify_cosigned(note, self._key)
        except ValueError as error:
            raise WitnessError(f"{self.name}: the witness's cosignature is not right ({error}).") from error
        path = cosigned_file(ledger.path)
        try:
            write_whole(path, note)
        except OSError as error:
            raise LedgerError(
                f"{path}: the cosigned checkpoint cannot be kept ({error}). Nothing was trained."
            ) from error
        return None

    def _conflict(self, error: Any) -> wire.Conflict:
        try:
            return wire.decode_conflict(str(error.details()).encode())
        except WireError as unread:
            raise WitnessError(f"{self.name}: the witness refused in other words than ours ({unread}).") from error

    def _call(self, method: str, data: bytes, decode: Callable[[bytes], Answer]) -> Answer:
        """Ask, and read the answer; grpc.RpcError where there is none."""
        try:
            self._refuse_expired()
            if self._channel is None:
                self._channel = grpc.secure_channel(self.address, self._credentials(), options=_OPTIONS)
        except (OSError, ConsortiumError) as error:
            raise WitnessError(f"{self.name}: the witness cannot be asked: {error}") from error
        answer = self._channel.unary_unary(method)(data, timeout=self._timeout_s)
        try:
            return decode(answer)
        except WireError as error:
            raise WitnessError(f"{self.name}: the witness's answer does not read ({error}).") from error

    def _refuse_expired(self) -> None:
        path = self._identity.tls_certificate
        if certificates.expires(path.read_bytes()) <= time.time():
            raise WitnessError(f"{path}: the certificate has expired, and no witness answers it. Renew it.")

    def _credentials(self) -> Any:
        own = self._identity
        return grpc.ssl_channel_credentials(
            root_certificates=own.authority.read_bytes(),
            private_key=keys.read_private(own.tls_key),
            certificate_chain=own.tls_certificate.read_bytes(),
        )

    def _refused(self, error: Any) -> WitnessError:
        code, details = error.code(), error.details()
        if code in _DOWN:
            return WitnessDownError(f"{self.name} at {self.address}: the witness does not answer ({details}).")
        return WitnessError(f"{self.name} at {self.address}: the witness refuses: {code.name}, {details}.")

    def _forked(self, ledger: Ledger, size: int) -> ForkedError:
        return ForkedError(
            f"{ledger.path}: witness {self.name} has cosigned {size} entries of another past: the ledger was forked, "
            f"or an older copy was restored and went on. Nothing was trained; find out which copy is the owner's."
        )
