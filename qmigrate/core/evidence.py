"""What preflight looks at: the facts of both hosts, the guest and the plan, side by side."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qmigrate.core.images import ImageEvidence
from qmigrate.core.model import (
    Finding,
    Guest,
    GuestDetail,
    HostFacts,
)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the rules look at."""

    detail: GuestDetail
    source_name: str
    source: HostFacts
    destination_name: str
    destination: HostFacts
    destination_guests: tuple[Guest, ...]
    plan_findings: tuple[Finding, ...]  # of core.cmdline
    bridges: tuple[str, ...]  # wanted on the destination
    images: tuple[ImageEvidence, ...]
    stop_unit: bool = False

    @property
    def guest(self) -> Guest:
        """The guest that is to move."""
        return self.detail.guest


Findings = Iterator[Finding]
Rule = Callable[[Facts], Findings]
