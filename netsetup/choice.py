"""Which tunnel to take, from what both hosts can do and how wide the paths are; pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from netsetup.errors import HostError, UsageError
from netsetup.mtu import Fit, Manner, fit
from netsetup.tunnel_spec import Address

AUTO = "auto"

# What is taken first where frames pass in the same manner, and why.
_PREFERRED: Mapping[str, str] = MappingProxyType(
    {
        "vxlan": "it is UDP, which firewalls, NAT and load balancers know, and network cards help",
        "gretap": "the kernels themselves keep strangers out of it",
        "etherip": "it has the smallest header",
    }
)
BACKENDS = ("kernel", "ebpf", "relay")  # the cheapest first
_MANNERS = (Manner.WHOLE, Manner.FRAGMENTS, Manner.TOLD)


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether a host can carry a kind over an IP version; `why_not` is None if it can."""

    kind: str
    backend: str
    family: int
    why_not: str | None


@dataclass(frozen=True, slots=True)
class Path:
    """Two hosts' addresses that reach each other; the MTU is None if nobody could measure it."""

    local: Address
    remote: Address
    mtu_bytes: int | None


@dataclass(frozen=True, slots=True)
class Choice:
    """A tunnel's kind, with `why` in words and what speaks against each of the others."""

    kind: str
    backend: str  # on our host
    their_backend: str
    path: Path
    fit: Fit
    why: str
    passed_over: tuple[str, ...]


def choose(
    ours: Iterable[Ability],
    theirs: Iterable[Ability],
    paths: Iterable[Path],
    *,
    mtu_bytes: int,
    tags: int = 0,
    wanted: str = AUTO,
) -> Choice:
    """Return the tunnel for guests of `mtu_bytes` whose frames carry `tags` VLAN tags inside.

    Paths are in the order of preference, and it is no kind's fault if the hosts carry it by
    different backends. Raises `HostError` with every reason if there is none, `UsageError` for a
    kind that nobody knows.
    """
    if wanted not in (AUTO, *_PREFERRED):
        raise UsageError(f"there is no tunnel {wanted!r}: {AUTO}, {', '.join(_PREFERRED)}")
    ours, theirs, paths = tuple(ours), tuple(theirs), tuple(paths)
    possible: list[Choice] = []
    against: list[str] = []
    for kind in _PREFERRED if wanted == AUTO else (wanted,):
        for path in paths:
            family = path.local.version
            here, there = (_backend(side, kind, family) for side in (ours, theirs))
            fits = fit(kind, family, mtu_bytes=mtu_bytes, path_mtu_bytes=path.mtu_bytes, tags=tags)
            name = f"{kind} over IPv{family}"
            if here is None or there is None:
                who = "this host" if here is None else "the other host"
                against.append(f"{name}: {who} cannot: {_why_not(ours, theirs, kind, family)}")
            elif fits.manner is Manner.LOST:
                against.append(f"{name}: {fits.cost}")
            else:
                possible.append(Choice(kind, here, there, path, fits, "", ()))
    if not possible:
        raise HostError(
            f"no tunnel is possible: {'; '.join(against) or 'no path between the hosts is known'}",
            next_step="load what is missing (`modprobe vxlan`), or give an address of the other "
            "host that reaches it",
        )
    best = min(possible, key=lambda choice: _MANNERS.index(choice.fit.manner))  # the first of them
    against += [
        f"{each.kind} over IPv{each.path.local.version}: {_behind(each, best)}"
        for each in possible
        if each is not best
    ]
    said = "it was asked for" if wanted != AUTO else _PREFERRED[best.kind]
    why = f"{best.kind} over IPv{best.path.local.version}: {said}; {best.fit.cost}"
    return Choice(
        best.kind, best.backend, best.their_backend, best.path, best.fit, why, tuple(against)
    )


def _backend(side: tuple[Ability, ...], kind: str, family: int) -> str | None:
    able = {a.backend for a in side if (a.kind, a.family, a.why_not) == (kind, family, None)}
    return next((backend for backend in BACKENDS if backend in able), None)


def _why_not(ours: tuple[Ability, ...], theirs: tuple[Ability, ...], kind: str, family: int) -> str:
    said = dict.fromkeys(
        each.why_not
        for each in (*ours, *theirs)
        if (each.kind, each.family) == (kind, family) and each.why_not is not None
    )
    return ", ".join(said) or "it does not know it"


def _behind(other: Choice, best: Choice) -> str:
    if other.fit.manner is not best.fit.manner:
        return other.fit.cost
    if other.kind == best.kind:
        return "the other address comes first"
    return f"as good, but of {best.kind}: {_PREFERRED[best.kind]}"
