"""The segment a guest was born on, as text that an interface's alias can carry; pure.

A guest's tap remembers its home wherever the guest goes; a tap without one was born where it is.
The text is ``host/bridge`` or ``host/bridge@vlan``; the host is called as the inventory calls it,
with what an alias could not carry percent-encoded.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from netsetup.errors import UsageError
from netsetup.segments import Segment

_TEXT = re.compile(r"([^/\s]+)/([^/@\s]+)(?:@([0-9]{1,4}))?")
_WORD = re.compile(r" ?\bhome=(\S*)")


@dataclass(frozen=True, slots=True)
class Home:
    """A segment of a named host. Raises `UsageError` for a bridge or VLAN that cannot be."""

    host: str
    bridge: str
    vlan: int | None = None

    def __post_init__(self) -> None:
        if not self.host:
            raise UsageError("a home needs its host's name")
        Segment(self.bridge, self.vlan)

    @property
    def segment(self) -> Segment:
        """The same without the host."""
        return Segment(self.bridge, self.vlan)

    def __str__(self) -> str:
        vlan = "" if self.vlan is None else f"@{self.vlan}"
        return f"{quote(self.host, safe='')}/{quote(self.bridge, safe='')}{vlan}"


def parse_home(text: str) -> Home:
    """Return the home that `text` names; raise `UsageError`."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no home: host/bridge or host/bridge@vlan")
    host, bridge, vlan = match.groups()
    return Home(unquote(host), unquote(bridge), int(vlan) if vlan else None)


def home_of(alias: str | None) -> Home | None:
    """Return the home that a tap's alias remembers; None if it remembers none that can be read."""
    match = _WORD.search(alias or "")
    if match is None:
        return None
    try:
        return parse_home(match[1])
    except UsageError:
        return None


def with_home(alias: str, home: Home) -> str:
    """Return `alias` that remembers `home`, and no other."""
    return f"{_WORD.sub('', alias)} home={home}"
