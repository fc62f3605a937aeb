"""Ends of tunnels on several hosts laid side by side; one that is alone serves nobody. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qmigrate.core.network import TunnelHere


@dataclass(frozen=True, slots=True)
class EndOn:
    """An end and the host that it is on."""

    host: str
    tunnel: TunnelHere


@dataclass(frozen=True, slots=True)
class TunnelRow:
    """One tunnel as all hosts that were asked know it."""

    id: str
    home: EndOn | None
    away: EndOn | None
    problems: tuple[str, ...]  # a sentence each

    @property
    def ends(self) -> tuple[EndOn, ...]:
        """Those that there are, home's first."""
        return tuple(end for end in (self.home, self.away) if end is not None)

    @property
    def guests(self) -> tuple[str, ...]:
        """Who claims it, at either end."""
        return tuple(sorted({guest for end in self.ends for guest in end.tunnel.guests}))


def pair_up(
    found: Mapping[str, Sequence[TunnelHere]], addresses: Mapping[str, Sequence[str]]
) -> tuple[TunnelRow, ...]:
    """Return every tunnel once; `found` and `addresses` are by host.

    An end whose other end is on a host that was not asked is no problem: nobody has looked.
    """
    ends: dict[str, dict[str, EndOn]] = {}
    for host, tunnels in found.items():
        for tunnel in tunnels:
            ends.setdefault(tunnel.id, {})[tunnel.end] = EndOn(host, tunnel)
    known = {address: host for host, all_ in addresses.items() for address in all_}
    return tuple(_row(id_, both, known) for id_, both in sorted(ends.items()))


def _row(id_: str, both: Mapping[str, EndOn], known: Mapping[str, str]) -> TunnelRow:
    home, away = both.get("home"), both.get("away")
    problems = [
        f"on {end.host} {problem}" for end in both.values() for problem in end.tunnel.problems
    ]
    for end in both.values():
        other = known.get(end.tunnel.remote or "")
        if len(both) == 1 and other is not None:
            problems.append(f"it has one end only, on {end.host}; {other} does not have the other")
    if home is not None and away is not None:
        problems += _differing(home, away)
    return TunnelRow(id_, home, away, tuple(problems))


def _differing(home: EndOn, away: EndOn) -> list[str]:
    one, other = home.tunnel, away.tunnel
    pairs = (("kind", one.kind, other.kind), ("key", one.key, other.key))
    problems = [
        f"its {what} is {ours} on {home.host} and {theirs} on {away.host}"
        for what, ours, theirs in pairs
        if ours != theirs
    ]
    for guest in set(one.guests) ^ set(other.guests):
        here = home.host if guest in one.guests else away.host
        problems.append(f"guest {guest} claims it on {here} only")
    return problems


def lost_on(
    host: str, found: Mapping[str, Sequence[TunnelHere]], addresses: Sequence[str]
) -> tuple[TunnelHere, ...]:
    """Return the ends of other hosts that lead to `host`, where the end that mirrors them is not.

    A host that rebooted has lost them all, and the others remember.
    """
    here = {tunnel.id for tunnel in found.get(host, ())}
    return tuple(
        tunnel
        for other, tunnels in found.items()
        if other != host
        for tunnel in tunnels
        if tunnel.remote in addresses and tunnel.id not in here
    )
