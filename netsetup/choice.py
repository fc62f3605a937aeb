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
# What it costs that the kernel has no device of its own for it, as measured against no tunnel on
# one machine, with and without the cards' help.
_COST: Mapping[str, str] = MappingProxyType(
    {
        "kernel": "",
        "ebpf": "programs in the kernel carry it, without a process",
        "relay": "a process copies every frame, which takes a third of the throughput or less "
        "and a core",
    }
)
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
    kind that nobody knows. `wanted` is a kind, or a kind and a backend: "etherip/relay".
    """
    kind_wanted, _, backend_wanted = wanted.partition("/")
    if kind_wanted not in (AUTO, *_PREFERRED) or backend_wanted not in ("", *BACKENDS):
        raise UsageError(
            f"there is no tunnel {wanted!r}: {AUTO}, {', '.join(_PREFERRED)}, and with a backend "
            f"such as etherip/relay: {', '.join(BACKENDS)}"
        )
    ours, theirs, paths = tuple(ours), tuple(theirs), tuple(paths)
    possible: list[Choice] = []
    against: list[str] = []
    for kind in _PREFERRED if kind_wanted == AUTO else (kind_wanted,):
        for path in paths:
            family = path.local.version
            here, there = (_able(side, kind, family, backend_wanted) for side in (ours, theirs))
            if not here or not there:
                who = "the other host" if here else "this host"
                why_not = _why_not(ours, theirs, kind, family)
                against.append(f"{kind} over IPv{family}: {who} cannot: {why_not}")
                continue
            against += _dearer(ours, theirs, kind, family) if not backend_wanted else ()
            for pair in dict.fromkeys(((here[0], there[0]), (here[-1], there[-1]))):
                fits = fit(
                    kind,
                    family,
                    mtu_bytes=mtu_bytes,
                    path_mtu_bytes=path.mtu_bytes,
                    tags=tags,
                    relayed=set(pair) == {"relay"},
                )
                if fits.manner is Manner.LOST:
                    against.append(f"{kind} over IPv{family}: {fits.cost}")
                else:
                    possible.append(Choice(kind, *pair, path, fits, "", ()))
    if not possible:
        raise HostError(
            f"no tunnel is possible: {'; '.join(against) or 'no path between the hosts is known'}",
            next_step="load what is missing (`modprobe vxlan`), or give an address of the other "
            "host that reaches it",
        )
    # Of equal ones the first. A process comes last: fragments cost less.
    best = min(possible, key=lambda it: ("relay" in _ends(it), _MANNERS.index(it.fit.manner)))
    against += [
        f"{each.kind}{_by(each)} over IPv{each.path.local.version}: {_behind(each, best)}"
        for each in possible
        if each is not best
    ]
    said = "it was asked for" if wanted != AUTO else _PREFERRED[best.kind]
    costs = [cost for cost in dict.fromkeys(_COST[end] for end in _ends(best)) if cost]
    words = "; ".join((said, *costs, best.fit.cost))
    why = f"{best.kind} over IPv{best.path.local.version}: {words}"
    return Choice(
        best.kind,
        best.backend,
        best.their_backend,
        best.path,
        best.fit,
        why,
        tuple(dict.fromkeys(against)),
    )


def _able(side: tuple[Ability, ...], kind: str, family: int, wanted: str) -> tuple[str, ...]:
    """Return by which backends, the cheapest first; the one that is wanted, or all."""
    able = {a.backend for a in side if (a.kind, a.family, a.why_not) == (kind, family, None)}
    return tuple(each for each in BACKENDS if each in able and wanted in ("", each))


def _dearer(
    ours: tuple[Ability, ...], theirs: tuple[Ability, ...], kind: str, family: int
) -> list[str]:
    """Say why a host cannot carry it by what would cost less than what it can."""
    return [
        f"{kind} ({each.backend}) over IPv{family}: {who} cannot: {each.why_not}"
        for who, side in (("this host", ours), ("the other host", theirs))
        for each in side
        if (each.kind, each.family) == (kind, family)
        and each.why_not is not None
        and BACKENDS.index(each.backend) < BACKENDS.index(_able(side, kind, family, "")[0])
    ]


def _ends(choice: Choice) -> tuple[str, str]:
    return choice.backend, choice.their_backend


def _by(choice: Choice) -> str:
    return "" if set(_ends(choice)) == {"kernel"} else f" ({choice.backend})"


def _why_not(ours: tuple[Ability, ...], theirs: tuple[Ability, ...], kind: str, family: int) -> str:
    said = dict.fromkeys(
        each.why_not
        for each in (*ours, *theirs)
        if (each.kind, each.family) == (kind, family) and each.why_not is not None
    )
    return ", ".join(said) or "it does not know it"


def _behind(other: Choice, best: Choice) -> str:
    if "relay" in _ends(other) and "relay" not in _ends(best):
        return _COST["relay"]
    if other.fit.manner is not best.fit.manner:
        return other.fit.cost
    if other.kind == best.kind and _ends(other) != _ends(best):
        return "the other way to carry it costs less"
    if other.kind == best.kind:
        return "the other address comes first"
    return f"as good, but of {best.kind}: {_PREFERRED[best.kind]}"
