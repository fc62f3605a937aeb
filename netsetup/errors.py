"""What can go wrong with the network, as one tree; a caller maps it to its own.

::

    NetsetupError                1   a defect of ours
    ├── UsageError               2   what was asked for cannot be
    ├── FrameError                   octets from the wire that are not what they claim to be
    └── HostError                4   this host cannot or will not
        ├── NoSuchLinkError          no interface of that name, or not of that kind
        ├── NotOursError             it carries someone else's mark: left alone
        ├── RefusedError             the kernel said no; `errno` is its word
        └── SilentKernelError        no answer in time: whether it took effect is not known
"""

import os
from errno import EPERM
from typing import ClassVar


class NetsetupError(Exception):
    """Base of all that we raise on purpose; `str()` is one sentence."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, next_step: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step


class UsageError(NetsetupError):
    """A name, an address or a combination that cannot be."""

    exit_code = 2


class FrameError(NetsetupError):
    """Octets that came from the network and are not well formed; the only error of a parser."""


class HostError(NetsetupError):
    """This host cannot do it or refuses."""

    exit_code = 4


class NoSuchLinkError(HostError):
    """There is no such interface here, or it is of another kind."""


class NotOursError(HostError):
    """The interface does not carry the mark that it was asked by; nothing was changed."""


class RefusedError(HostError):
    """The kernel refused; `errno` says why."""

    def __init__(self, doing: str, errno: int, *, next_step: str | None = None) -> None:
        if errno == EPERM and next_step is None:
            next_step = "run it as root: it needs CAP_NET_ADMIN and CAP_NET_RAW"
        super().__init__(
            f"the kernel refused to {doing}: {os.strerror(errno)}", next_step=next_step
        )
        self.errno = errno


class SilentKernelError(HostError):
    """The kernel did not answer within the deadline; look before you try again."""
