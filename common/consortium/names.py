"""Names and addresses as a roster may hold them.

>>> host("coordinator.example:9443"), host("[::1]:9443")
('coordinator.example', '::1')
"""

import re
from ipaddress import IPv6Address
from typing import Annotated

from pydantic import AfterValidator

LABEL = "1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
ADDRESS = "host:port"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LAST_PORT = 65_535


def is_label(text: str) -> bool:
    """Whether the text can be a name: it goes into files' names, certificates and logs."""
    return _LABEL.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """Whether the text is a host's name or an IP address, the latter without brackets."""
    if ":" in text:
        try:
            return not IPv6Address(text).scope_id
        except ValueError:
            return False
    return _HOST.fullmatch(text) is not None


def is_address(text: str) -> bool:
    """Whether the text is a host, a colon and a port; an IPv6 address stands in brackets."""
    found, _, port = text.rpartition(":")
    bracketed = found.startswith("[") and found.endswith("]")
    inner = found[1:-1] if bracketed else found
    is_port = _PORT.fullmatch(port) is not None and int(port) <= _LAST_PORT
    return is_port and is_host(inner) and bracketed == (":" in inner)


def host(address: str) -> str:
    """Return the host of an address."""
    return address.rpartition(":")[0].strip("[]")


def _label(text: str) -> str:
    if not is_label(text):
        raise ValueError(f"expected {LABEL}, got {text!r}")
    return text


def _address(text: str) -> str:
    if text and not is_address(text):
        raise ValueError(f"expected {ADDRESS} or nothing, got {text!r}")
    return text


Label = Annotated[str, AfterValidator(_label)]
Address = Annotated[str, AfterValidator(_address)]
