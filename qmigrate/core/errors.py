"""What can go wrong, as one tree; each leaf is a meaning and knows its exit code.

::

    QmigrateError                1   a defect of ours, nothing touched
    ├── UsageError               2   the command line, nothing touched
    │   └── ConfigError          2   the inventory, with file, line and column
    ├── BlockedError             3   preflight said no, nothing touched
    ├── HostError                4   a host cannot be reached or refuses, nothing touched
    │   ├── UnreachableError         no route, no name, connection refused
    │   ├── LoginError               key, password or user refused
    │   ├── HostKeyError             unknown, changed or revoked host key
    │   ├── NeedsOpensshError        something that only the system's ssh can do
    │   ├── SudoError                not root, and sudo -n refused
    │   ├── AgentStartError          no python3, too old, cache unusable, payload damaged
    │   ├── NoSuchJobError           the host knows nothing of the job
    │   ├── AgentLostError           the agent's connection ended
    │   ├── ProtocolError            the other side speaks another language
    │   ├── LinkError                the link between the two agents
    │   │   ├── LinkUnreachableError     no way from agent to agent; names address, port and rule
    │   │   ├── LinkRefusedError         the peer is there and will not: other version, other job
    │   │   └── LinkBrokenError          it ended; whether the last messages arrived is unknown
    │   └── MonitorError             a QEMU's monitor
    │       ├── MonitorUnreachableError   nothing listens at the socket
    │       ├── MonitorBusyError          connected, no greeting: another client holds it
    │       ├── MonitorSilentError        it stopped answering
    │       ├── MonitorGarbledError       it does not speak QMP
    │       ├── MonitorLostError          it closed; whether the command took effect is unknown
    │       └── CommandError              QEMU refused the command, in its own words
    ├── RolledBackError          5   failed, the guest runs on the source
    ├── CancelledError           6   cancelled, the guest runs on the source
    ├── UnknownOutcomeError      7   not known here; nothing is resumed, killed or deleted on it
    ├── IncompleteError          8   migrated, but something asked for could not be shown
    └── GuestEndedError          9   the guest ended during the job

An error crosses the wire as a `Problem` and is raised as itself on the other side.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as data: kebab-case code, and the five things a reader needs."""

    code: str
    what: str
    phase: str | None = None
    host: str | None = None
    last_words: str | None = None
    next_step: str | None = None


class QmigrateError(Exception):
    """Base of all that we raise on purpose; `str()` is one sentence."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "qmigrate"
    _by_code: ClassVar[dict[str, type["QmigrateError"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = cls.__name__.removesuffix("Error")
        cls.code = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
        QmigrateError._by_code[cls.code] = cls

    def __init__(
        self,
        what: str,
        *,
        phase: str | None = None,
        host: str | None = None,
        last_words: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(what)
        self.problem = Problem(self.code, what, phase, host, last_words, next_step)

    @staticmethod
    def of(problem: Problem) -> "QmigrateError":
        """Return the error that `problem` describes; an unknown code becomes the base class."""
        cls = QmigrateError._by_code.get(problem.code, QmigrateError)
        error = cls.__new__(cls)
        Exception.__init__(error, problem.what)
        error.problem = problem
        return error

    def at(self, *, phase: str | None = None, host: str | None = None) -> Self:
        """Fill in phase and host where they are not said yet; return self, to be raised."""
        self.problem = replace(
            self.problem, phase=self.problem.phase or phase, host=self.problem.host or host
        )
        return self


class UsageError(QmigrateError):
    """The command line asks for what cannot be."""

    exit_code = 2


class ConfigError(UsageError):
    """The inventory or configuration is wrong; `what` names file, line and column."""


class BlockedError(QmigrateError):
    """Preflight found blockers; nothing was touched."""

    exit_code = 3


class HostError(QmigrateError):
    """A host cannot be reached or refuses; nothing was touched."""

    exit_code = 4


class UnreachableError(HostError):
    """No such name, no route, refused or timed out."""


class LoginError(HostError):
    """The host answered and let nobody in."""


class HostKeyError(HostError):
    """The host's key is unknown, changed or revoked."""


class NeedsOpensshError(HostError):
    """The ssh configuration asks for what only OpenSSH itself can do."""


class SudoError(HostError):
    """Not root there, and ``sudo -n`` refused."""


class AgentStartError(HostError):
    """The agent could not be started on the host."""


class NoSuchJobError(HostError):
    """The host knows nothing of the job; another may."""


class AgentLostError(HostError):
    """The connection to the agent ended."""


class ProtocolError(HostError):
    """A message that cannot be understood."""


class LinkError(HostError):
    """Something about the link between the two agents."""


class LinkUnreachableError(LinkError):
    """Neither agent could reach the other within the deadline."""


class LinkRefusedError(LinkError):
    """The peer proved who it is, and the two cannot work together."""


class LinkBrokenError(LinkError):
    """The link ended; whether the messages sent last have arrived is unknown."""


class MonitorError(HostError):
    """Something about a QEMU's monitor."""


class MonitorUnreachableError(MonitorError):
    """Nothing listens at the monitor's socket."""


class MonitorBusyError(MonitorError):
    """The monitor accepted and sent no greeting: another client holds it."""


class MonitorSilentError(MonitorError):
    """The monitor stopped answering within its deadline."""


class MonitorGarbledError(MonitorError):
    """What answered does not speak QMP."""


class MonitorLostError(MonitorError):
    """The monitor closed; whether a pending command took effect is unknown."""


class CommandError(MonitorError):
    """QEMU refused a command; `last_words` are its own."""


class RolledBackError(QmigrateError):
    """It failed and the guest runs on the source."""

    exit_code = 5


class CancelledError(QmigrateError):
    """It was cancelled and the guest runs on the source."""

    exit_code = 6


class UnknownOutcomeError(QmigrateError):
    """How it ended cannot be known from here."""

    exit_code = 7


class IncompleteError(QmigrateError):
    """The guest has moved, but something asked for could not be shown."""

    exit_code = 8


class GuestEndedError(QmigrateError):
    """The guest ended during the job."""

    exit_code = 9
