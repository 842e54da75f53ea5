"""A member's request to be in the roster: public keys, and proofs that who asks has the private ones.

Three signatures stand in it: of the signing key over all fields, of an owner's node key over the same, and of the TLS
key inside the certificate request. A member that changes its keys adds one of its former signing key.
"""

import base64
import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from common.consortium import certificates, keys, seals
from common.consortium.documents import decoded, read_json
from common.consortium.members import Role
from common.consortium.names import Address, Label
from common.errors import ConsortiumError
from common.model_tables import Table
from common.transparency.notes import Signer, VerifierKey
from common.validation_errors import explain

_REMEDY = "Ask the member for its request.json again, and compare its key with what it reads out to you."


class Request(Table):
    """What a member asks for; every text may be shown to anybody."""

    version: Literal[1]
    name: Label
    role: Role
    signing: str
    node: str = ""
    ledger: str = ""
    address: Address = ""
    csr: str
    former: str = ""

    @property
    def statement(self) -> bytes:
        """What each of the member's keys signs."""
        return seals.statement("request", **self.model_dump(mode="json"))


def make(
    signer: Signer,
    *,
    role: Role,
    node: keys.PrivateKey | None,
    tls: keys.PrivateKey,
    ledger: str = "",
    address: str = "",
    former: Signer | None = None,
) -> str:
    """Return the text of request.json."""
    name = signer.key.name
    request = parse(
        {
            "version": 1,
            "name": name,
            "role": role,
            "signing": str(signer.key),
            "node": keys.node_public_pem(node) if node else "",
            "ledger": ledger,
            "address": address,
            "csr": certificates.request(name, tls),
            "former": str(former.key) if former else "",
        },
        name="request",
    )
    proofs = {"signing": seals.seal(signer, request.statement)}
    if node:
        proofs["node"] = keys.prove(node, request.statement)
    if former:
        proofs["former"] = seals.seal(former, request.statement)
    texts = {name: base64.b64encode(proof).decode() for name, proof in proofs.items()}
    return json.dumps({"request": request.model_dump(mode="json"), "proofs": texts}, indent=1) + "\n"


def load(path: Path) -> Request:
    """Read a request whose every proof is right, or raise ConsortiumError."""
    content = read_json(path)
    if not isinstance(content, dict) or content.keys() != {"request", "proofs"}:
        raise ConsortiumError(f"{path}: expected a request with its proofs, got another file. {_REMEDY}")
    request = parse(content["request"], name=str(path))
    proofs = content["proofs"] if isinstance(content["proofs"], dict) else {}
    statement = request.statement
    key, former = _key(request.signing, request.name), _key(request.former, request.name)
    if key is None or not key.is_signed(statement, decoded(proofs.get("signing"))):
        raise _unproven(path, "signing key")
    if request.role == "owner" and not keys.is_node_public(request.node):
        raise ConsortiumError(f"{path}: node: expected an EC P-384 key of an owner, got another. {_REMEDY}")
    if request.node and not keys.is_proven(request.node, statement, decoded(proofs.get("node"))):
        raise _unproven(path, "node key")
    if request.former and (former is None or not former.is_signed(statement, decoded(proofs.get("former")))):
        raise _unproven(path, "former signing key")
    certificates.requested_key(request.csr, name=request.name)
    return request


def parse(content: object, *, name: str) -> Request:
    """Read a request's table, or raise ConsortiumError; its proofs are another matter."""
    try:
        return Request.model_validate(content)
    except ValidationError as error:
        tables = dict.fromkeys(Request.model_fields, ())
        raise ConsortiumError(f"{name}: {explain(error, tables)}") from error


def _key(text: str, name: str) -> VerifierKey | None:
    try:
        key = VerifierKey.parse(text)
    except ValueError:
        return None
    return key if key.name == name else None


def _unproven(path: Path, key: str) -> ConsortiumError:
    return ConsortiumError(
        f"{path}: expected a proof that the member has the {key} it names, got none that is right. {_REMEDY}"
    )
