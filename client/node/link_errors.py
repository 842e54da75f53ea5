"""What can be wrong between a node and its link.

LinkError
├── UnreachableError          no answer, or none that makes sense: try again
├── ClockRefusedError         the clocks differ: try again, and say so
├── KeyRefusedError           the link does not know, or no longer accepts, this node's key
├── CertificateRefusedError   who answers has no certificate of the consortium
├── VersionRefusedError       the link runs another version of Flower
├── RunOverError              nobody waits for the answer any more
└── RejectedError             the link will never take this request
"""

from common.errors import LinkError


class UnreachableError(LinkError):
    """The link does not answer."""


class ClockRefusedError(LinkError):
    """The link's clock and this machine's differ."""


class KeyRefusedError(LinkError):
    """The link does not accept this node's key."""


class CertificateRefusedError(LinkError):
    """Whoever answers is not the consortium's link."""


class VersionRefusedError(LinkError):
    """The link speaks another version of Flower's protocol."""


class RunOverError(LinkError):
    """The run is over, or unknown."""


class RejectedError(LinkError):
    """The link will not take this request, however often it is made."""
