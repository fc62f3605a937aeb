"""Whether an end of a tunnel still serves a guest, from where its guests are. Pure."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OurTunnel:
    """An end of a tunnel on this host."""

    id: str
    away: bool  # the end with the private bridge, where guests are away from home
    guests: tuple[str, ...]  # ids of those who claim it
    taps: tuple[str, ...]  # in its private bridge
    remote: str | None  # the other end's address
    locked: tuple[str, ...] = ()  # of those ids, whom a job is about to bring here


@dataclass(frozen=True, slots=True)
class Claims:
    """What is known here of those who claim it, each by the guest's id."""

    lives: Callable[[str], bool]  # its QEMU is here
    worked_at: Callable[[str], bool]  # a job of this host works at it
    undecided: Callable[[str], tuple[str, str] | None]  # a job and its guest's name
    tap_serves: Callable[[str], bool]


def needed(tunnel: OurTunnel, claims: Claims) -> tuple[bool | None, str, str | None]:
    """Return whether it is needed (None: that is to be resolved first), why, and the guest's name.

    A claim at the away end is void where the guest is not; at home, where it is. Of a guest that is
    not at home nobody there knows whether it still lives behind the tunnel.
    """
    for guest in tunnel.guests:
        if guest in tunnel.locked or claims.worked_at(guest):
            return True, f"a job works at guest {guest}", None
        if (job := claims.undecided(guest)) is not None:
            return None, f"job {job[0]} may need it", job[1]
        if tunnel.away is claims.lives(guest):
            where = "here" if tunnel.away else f"at {tunnel.remote}, as far as is known here"
            return True, f"its guest {guest} lives {where}", None
    for tap in tunnel.taps:
        if claims.tap_serves(tap):
            return True, f"{tap} is in its private bridge", None
    if not tunnel.guests:
        return False, "no guest claims it", None
    return False, "its guests are not here" if tunnel.away else "its guests are at home", None
