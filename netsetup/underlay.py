"""A tunnel's program on an interface that is not ours: put beside what others have, and taken away.

Everything here blocks and runs in the thread of `netsetup.rtnl`, with its socket `ip`. Which
interface it is, and whether the clsact there is ours, is written on the tunnel's own interface
before either is changed (`netsetup.inner_marks`), so that a death in between leaves a trace.
"""

from dataclasses import dataclass
from errno import EEXIST, ENETUNREACH, ENOENT
from typing import Any

from netsetup.bpf import name_of
from netsetup.bpf_load import loaded
from netsetup.errors import HostError
from netsetup.frames import ETHERTYPE_IPV4
from netsetup.inner_marks import Underlay, is_underlay, read_names, underlay_name
from netsetup.links import Message, other_names
from netsetup.port_filters import INGRESS, AttachedProgram, attached_programs, has_filters
from netsetup.tunnel_parts import Parts
from netsetup.tunnel_spec import GROUP, Address, Part, TunnelSpec

PRIORITY = 0x716D  # "qm"; every tunnel has a handle of its own there
_ETHERNET = 1  # ARPHRD_ETHER


@dataclass(frozen=True, slots=True)
class Way:
    """The interface by which packets to the peer leave now, and what it takes."""

    index: int
    name: str
    mtu_bytes: int
    ethernet: bool


def way_to(ip: Any, remote: Address) -> Way:
    """Return by which interface the routes lead to `remote`; raise `HostError` if none does."""
    try:
        (route,) = ip.route("get", dst=str(remote), family=_FAMILY[remote.version])
    except Exception as exc:
        if getattr(exc, "code", None) != ENETUNREACH:
            raise
        raise HostError(
            f"this host has no route to {remote}",
            next_step="give an address of the other host that it has a route to",
        ) from exc
    link = ip.link("get", index=route.get("oif"))[0]
    metrics = route.get("metrics")
    of_route = metrics.get("mtu") if metrics is not None else None
    return Way(
        link["index"],
        link.get("ifname"),
        min(filter(None, (link.get("mtu"), of_route))),
        link["ifi_type"] == _ETHERNET,
    )


_FAMILY = {4: 2, 6: 10}


def ensure_program(
    ip: Any, spec: TunnelSpec, inner: Message, way: Way, program: bytes
) -> list[str]:
    """Put `program` on the interface of `way`, and nowhere else; return what was mended."""
    mended = []
    had = read_names(other_names(inner)).underlay
    if had is not None and had.index != way.index:
        _release(ip, had, spec.id)
        _forget(ip, inner)
        mended.append(f"the route to {spec.remote} leads by {way.name} now")
        had = None
    there = any(each.get("kind") == "clsact" for each in ip.get_qdiscs(index=way.index))
    if had is None:
        had = Underlay(way.index, hook_is_ours=not there or _made_for_another(ip, way.index))
        ip.link("property_add", index=inner["index"], altname=underlay_name(spec, had))
        fresh = True
    else:
        fresh = False
    if not there:
        try:
            ip.tc("add", "clsact", way.index)
        except Exception as exc:
            if getattr(exc, "code", None) != EEXIST:
                raise
    if not program_differs(way.index, spec.id, program):
        return mended
    if not fresh:
        mended.append(f"{way.name} had another program of this tunnel, or none")
    if _ours(way.index, spec.id) is not None:
        _delete(ip, way.index, spec.id)
    with loaded(program, name_of(program)) as descriptor:
        ip.tc(
            "add-filter",
            "bpf",
            way.index,
            _handle(spec.id),
            fd=descriptor,
            name=_name(spec.id, program),
            parent=INGRESS,
            direct_action=True,
            classid=1,
            prio=PRIORITY,
            protocol=ETHERTYPE_IPV4,
        )
    return mended


def program_differs(index: int, id_: str, program: bytes) -> bool:
    """Whether the tunnel's program on interface `index` is another, or not there."""
    found = _ours(index, id_)
    return found is None or found.name != _name(id_, program)


def underlay_program(inner: Message, id_: str) -> AttachedProgram | None:
    """Return the tunnel's program on the underlay's interface; None if there is none."""
    underlay = read_names(other_names(inner)).underlay
    return None if underlay is None else _ours(underlay.index, id_)


def release_underlay(ip: Any, parts: Parts) -> None:
    """Take a tunnel's program from the underlay's interface, if there is one."""
    inner = parts.get(Part.INNER)
    underlay = read_names(other_names(inner)).underlay if inner is not None else None
    if inner is None or underlay is None:
        return
    name = next(filter(is_underlay, other_names(inner)))
    _release(ip, underlay, name.split("-")[1])
    _forget(ip, inner)
    parts[Part.INNER] = ip.link("get", index=inner["index"])[0]


def _forget(ip: Any, inner: Message) -> None:
    for name in filter(is_underlay, other_names(inner)):
        ip.link("property_del", index=inner["index"], altname=name)


def _release(ip: Any, underlay: Underlay, id_: str) -> None:
    index = underlay.index
    if not any(message["index"] == index for message in ip.link("dump")):
        return  # it took all with it
    if _ours(index, id_) is not None:
        _delete(ip, index, id_)
    there = any(each.get("kind") == "clsact" for each in ip.get_qdiscs(index=index))
    if underlay.hook_is_ours and there and not has_filters(index):
        ip.tc("del", "clsact", index)


def _delete(ip: Any, index: int, id_: str) -> None:
    try:
        ip.tc(
            "del-filter",
            "bpf",
            index,
            _handle(id_),
            parent=INGRESS,
            prio=PRIORITY,
            protocol=ETHERTYPE_IPV4,
        )
    except Exception as exc:
        if getattr(exc, "code", None) != ENOENT:
            raise


def _made_for_another(ip: Any, index: int) -> bool:
    """Whether the clsact there was made for another tunnel of ours."""
    marks = (
        read_names(other_names(message)).underlay
        for message in ip.link("dump")
        if message.get("group") == GROUP
    )
    return Underlay(index, hook_is_ours=True) in set(marks)


def _ours(index: int, id_: str) -> AttachedProgram | None:
    for each in attached_programs(index, INGRESS):
        if each.priority == PRIORITY and each.name.startswith(f"qm-{id_}-"):
            return each
    return None


def _handle(id_: str) -> int:
    return int(id_, 16) or 1


def _name(id_: str, program: bytes) -> str:
    return f"qm-{id_}-{name_of(program).removeprefix('qm-')}"
