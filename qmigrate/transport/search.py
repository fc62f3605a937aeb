"""One call of `Endpoint.connect` while it is under way."""

import trio

from qmigrate.core.errors import LinkRefusedError
from qmigrate.core.model import Address
from qmigrate.transport.frames import Generation
from qmigrate.transport.link import Link
from qmigrate.transport.reach import Tried


class Search:
    """What was tried, and what came of it."""

    def __init__(self, last: Generation) -> None:
        self.last = last  # the link that the caller takes for dead
        self.tried: dict[Address, Tried] = {}
        self.link: Link | None = None
        self.refusal: LinkRefusedError | None = None
        self.done = trio.Event()
        self.choosing = trio.Lock()

    def found(self, link: Link) -> None:
        """End it with a link."""
        self.link = link
        self.done.set()

    def refuse(self, refusal: LinkRefusedError) -> None:
        """End it: the peer is there and cannot work with us."""
        self.refusal = refusal
        self.done.set()
