"""What the rules that rewrite options share: their view of the guest, and the simplest rules."""

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from qmigrate.core.argv import Option
from qmigrate.core.guestline import opts_of
from qmigrate.core.job import TapPlan
from qmigrate.core.model import Finding, GuestDetail, Severity
from qmigrate.core.redact import redact_option

RULE = "unmappable"
SHOWN_LETTERS = 120


@dataclass(slots=True)
class Work:
    """What the rules read and add to; lives for one call of `twin`."""

    detail: GuestDetail
    host: str
    directory: str
    bridges: dict[str, str]
    taps: list[TapPlan] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    sockets: dict[str, str] = field(default_factory=dict)
    nic_number: int = 0

    def refuse(self, message: str, fix: str) -> None:
        """Add a blocker."""
        self.findings.append(Finding(RULE, Severity.BLOCKER, self.host, message, fix))

    def warn(self, message: str, fix: str) -> None:
        """Add a warning."""
        self.findings.append(Finding(RULE, Severity.WARNING, self.host, message, fix))

    def relocated(self, path: str) -> str:
        """Return where a socket or pid file of the guest's lives on the destination."""
        if path not in self.sockets:
            name, taken = posixpath.basename(path) or "socket", set(self.sockets.values())
            number = 1
            while f"{self.directory}/{name}" in taken or name == "monitor":
                number += 1
                name = f"{posixpath.basename(path)}.{number}"
            self.sockets[path] = f"{self.directory}/{name}"
        return self.sockets[path]


Rule = Callable[[Work, Option], Iterator[tuple[Option | None, str]]]


def shown(option: Option) -> str:
    """Return the option for a sentence: without its secrets, and not too long."""
    return " ".join(redact_option(option).words())[:SHOWN_LETTERS]


def keep(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Leave the option as it is; refuse one that begins as JSON and is not."""
    if option.value and option.value.startswith("{") and not opts_of(option).items:
        work.refuse(f"{option.words()[0]} begins as JSON and is not", "correct it")
    yield option, "kept"


def drop(why: str) -> Rule:
    """Return the rule that leaves an option out, for a reason."""

    def rule(_work: Work, _option: Option) -> Iterator[tuple[Option | None, str]]:
        yield None, why

    return rule


def refused(what: str, fix: str) -> Rule:
    """Return the rule that refuses an option by name."""

    def rule(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
        work.refuse(f"{shown(option)}: {what}", fix)
        yield option, "kept"

    return rule


def file(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Note the file that the option names: it must be there too."""
    if option.value:
        work.files.append(option.value)
    yield option, "kept"


def directory(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Memory in a file: QEMU makes it anew, in a directory that has to be there."""
    work.files.append(option.value or "")
    yield option, "kept"


def file_in(*keys: str) -> Rule:
    """Return the rule that notes the files under these keys."""

    def rule(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
        opts = opts_of(option)
        work.files += [value for key in keys if (value := opts.get(key))]
        yield option, "kept"

    return rule
