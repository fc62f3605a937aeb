"""What a tunnel tells of itself where no device does: alternative names of the port's other end.

A device of the kernel's says its addresses, key and kind. A veth pair with programs on it does not,
so its inner end bears names, each good for one thing:

- ``qmw-KIND-LOCAL-REMOTE[-KEY]``, addresses in hex: whose packets these are. The kernel allows a
  name once in a namespace, so no two tunnels take the same packets: EtherIP has no key, hence one
  tunnel between two addresses.
- ``qmc-ID-BACKEND-KEY-HEADER-PATH``: how it is carried.
- ``qmu-ID-INDEX-WHOSE``: the underlay's interface that has the tunnel's program, and whether the
  hook that it is on, a clsact, is ours to remove with the last.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from netsetup.tunnel_parts import Carried
from netsetup.tunnel_spec import Address, TunnelSpec
from netsetup.wire import GRETAP

_WIRE = re.compile(r"qmw-([a-z]+)-([0-9a-f]{8}|[0-9a-f]{32})-([0-9a-f]{8}|[0-9a-f]{32})(?:-\d+)?")
_CARRIER = re.compile(r"qmc-[0-9a-f]{8}-([a-z]+)-(\d+)-(rfc|reversed)-(\d+)")
_UNDERLAY = re.compile(r"qmu-[0-9a-f]{8}-(\d+)-(ours|others)")


@dataclass(frozen=True, slots=True)
class Underlay:
    """An interface with a tunnel's program; `hook_is_ours` if nobody else needs the clsact."""

    index: int
    hook_is_ours: bool


@dataclass(frozen=True, slots=True)
class InnerMarks:
    """What the names say; None for what they do not."""

    backend: str | None
    carried: Carried | None
    underlay: Underlay | None


def wire_name(spec: TunnelSpec) -> str:
    """Return the name that no other tunnel's may be."""
    key = f"-{spec.key}" if spec.kind == GRETAP else ""
    return f"qmw-{spec.kind}-{spec.local.packed.hex()}-{spec.remote.packed.hex()}{key}"


def carrier_name(spec: TunnelSpec, backend: str) -> str:
    """Return the name that tells what carries it."""
    header = "reversed" if spec.reversed_header else "rfc"
    return f"qmc-{spec.id}-{backend}-{spec.key}-{header}-{spec.path_mtu_bytes or 0}"


def underlay_name(spec: TunnelSpec, underlay: Underlay) -> str:
    """Return the name that tells where the tunnel's program is."""
    whose = "ours" if underlay.hook_is_ours else "others"
    return f"qmu-{spec.id}-{underlay.index}-{whose}"


def is_wire(name: str) -> bool:
    """Whether it is one of `wire_name`."""
    return name.startswith("qmw-")


def is_carrier(name: str) -> bool:
    """Whether it is one of `carrier_name`."""
    return name.startswith("qmc-")


def is_underlay(name: str) -> bool:
    """Whether it is one of `underlay_name`."""
    return name.startswith("qmu-")


def read_names(names: Iterable[str]) -> InnerMarks:
    """Return what alternative names of an inner end say."""
    backend = carried = underlay = wire = None
    key, path, header = 0, 0, "rfc"
    for name in names:
        if match := _WIRE.fullmatch(name):
            wire = match[1], _address(match[2]), _address(match[3])
        elif match := _CARRIER.fullmatch(name):
            backend, key, header, path = match[1], int(match[2]), match[3], int(match[4])
        elif match := _UNDERLAY.fullmatch(name):
            underlay = Underlay(int(match[1]), match[2] == "ours")
    if wire is not None and backend is not None:
        carried = Carried(*wire, key, None, path or None, header == "reversed")
    return InnerMarks(backend, carried, underlay)


def _address(text: str) -> Address:
    return ip_address(bytes.fromhex(text))
