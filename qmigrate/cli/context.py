"""What every command is given: where to write, which inventory, how much to tell."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qmigrate.cli.render import Output

if TYPE_CHECKING:
    from qmigrate.controller.inventory import Inventory

INTERRUPTED = 130  # 128 + SIGINT, as every shell reports it; no migration was under way


@dataclass(slots=True)
class Interrupts:
    """What a signal does at the moment; the default is to cancel the command."""

    count: int = 0
    last: int = 0
    _handler: Callable[[int], None] | None = None

    @contextlib.contextmanager
    def handled_by(self, handler: Callable[[int], None]) -> Iterator[None]:
        """Within the block each SIGINT, SIGTERM or SIGHUP calls `handler(how_many_so_far)`."""
        self.count, before = 0, self._handler
        self._handler = handler
        try:
            yield
        finally:
            self._handler = before

    def deliver(self, signum: int) -> bool:
        """Count a signal and hand it to the handler; False if there is none."""
        self.count += 1
        self.last = signum
        if self._handler is None:
            return False
        self._handler(self.count)
        return True


@dataclass(frozen=True, slots=True)
class Context:
    """The common options of one run, made useful."""

    out: Output
    config: str | None = None
    ssh_config: str | None = None
    ssh: str | None = None
    verbose: int = 0
    debug: bool = False
    interrupts: Interrupts = field(default_factory=Interrupts)

    def inventory(self) -> "Inventory":
        """Read the inventory; raises `ConfigError` with every fault in it."""
        from qmigrate.controller.inventory import load

        return load(config=self.config, ssh_config=self.ssh_config, ssh_client=self.ssh)
