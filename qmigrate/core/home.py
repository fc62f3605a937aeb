"""What a job knows of the network: where its guest's neighbours are, and what to turn."""

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
