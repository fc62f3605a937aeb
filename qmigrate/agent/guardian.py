"""The parent of a job's agent: holds what must outlive it, and starts it again from the journal.

It keeps the job's lock, the door's listening socket and the spec with the key (a memfd) open, and
does nothing else, so that there is little in it that could fail. Standard library only.

::

    session's agent ── spawns ──► guardian ── spawns ──► job's agent   exit status
                                     ▲                        │        0  all is over: clean up
                                     └──── again, at most ────┘        75 leave it to `resolve`
                                           RESTARTS times              else: start it again
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qmigrate.agent import locks, log
from qmigrate.agent.places import JobPlaces

RESTARTS = 5  # an agent that dies this often dies of the job itself
OVER = 0
KEEP_JOURNAL = os.EX_TEMPFAIL


@dataclass(frozen=True, slots=True)
class Inherited:
    """The descriptors that guardian and agent are started with, in argv as numbers."""

    spec: int
    door: int
    lock: int

    def argv(self) -> list[str]:
        """Return them as words."""
        return [str(self.spec), str(self.door), str(self.lock)]

    @classmethod
    def parse(cls, words: list[str]) -> "Inherited":
        """Return what `argv` has written."""
        spec, door, lock = map(int, words)
        return cls(spec, door, lock)


def agent_command(mode: str) -> list[str]:
    """Return the command that starts this very agent in another mode: pushed or installed."""
    main = sys.modules["__main__"].__file__
    pushed = Path(main).parent if main else None
    if pushed and (pushed / ".ok").exists():
        return [sys.executable, "-I", str(pushed), mode]
    return [sys.executable, "-I", "-m", "qmigrate.agent", mode]


def main(words: list[str]) -> int:
    """Guard a job: `words` are the job's id, the lock's key, the descriptors; "again": go on."""
    job, key = words[:2]
    inherited = Inherited.parse(words[2:5])
    revived = words[5:] == ["again"]
    descriptors = (inherited.spec, inherited.door, inherited.lock)
    for attempt in range(1 + RESTARTS):
        again = ["again"] if attempt or revived else []
        command = [*agent_command("worker"), job, *inherited.argv(), *again]
        status = subprocess.run(command, pass_fds=descriptors, check=False).returncode
        if status == OVER:
            leave(job, key, inherited.lock)
            return 0
        if status == KEEP_JOURNAL:
            break
        log.write(f"guardian: the agent of job {job} ended with status {status}\n")
    leave(job, key, inherited.lock, keep_journal=True)
    return 1


def leave(job: str, key: str, lock: int, *, keep_journal: bool = False) -> None:
    """Remove what guardian and agent hold together: the lock, the door, the journal if it may go.

    Either does it at the end, whoever is first: the other may be dead.
    """
    if keep_journal:
        JobPlaces(job).door.unlink(missing_ok=True)
    else:
        JobPlaces(job).remove()
    locks.remove(key, lock)
