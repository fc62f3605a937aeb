"""What a job knows of the network: its guest's home, what to turn, what to let go of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Home:
    """A segment of a host; `vlan` is None for what an untagged guest gets."""

    host: str  # as the inventory calls it
    bridge: str
    vlan: int | None = None

    def __str__(self) -> str:
        vlan = "" if self.vlan is None else f" VLAN {self.vlan}"
        return f"{self.host}'s {self.bridge}{vlan}"


@dataclass(frozen=True, slots=True)
class TurnWish:
    """Frames for `mac` are to go to `port` of its bridge as soon as the guest runs elsewhere."""

    mac: str
    port: str
    vlan: int | None = None


@dataclass(frozen=True, slots=True)
class ReleaseTunnels:
    """Take a guest's claims away, and with the last of each the end of that tunnel.

    Those of `only` if it is not None, but not of `keep`; with `end` those of that end only. An end
    without any claim goes with them: its builder or its remover has died.
    """

    guest: str | None  # None: everybody's claims
    only: tuple[str, ...] | None = None
    keep: tuple[str, ...] = ()
    end: str | None = None


@dataclass(frozen=True, slots=True)
class TunnelsReleased:
    """Answer to `ReleaseTunnels`: interfaces that are gone, and sentences why others stay."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]
