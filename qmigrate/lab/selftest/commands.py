"""A `qmigrate` under way or at its end, as a script has it: exit code, result, progress."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qmigrate.core.errors import HostError

MOVE_DEADLINE_S = 120.0  # of a whole `qmigrate`, whose own deadlines are shorter
SAY_DEADLINE_S = 45.0  # of a command about a job that is decided, or will be in a moment
JOB = "job "  # begins the words of the progress that names the job


@dataclass(frozen=True, slots=True)
class Moved:
    """How a `qmigrate … --json` ended."""

    code: int
    result: dict[str, Any]  # the one object of stdout; empty if there was none
    progress: tuple[dict[str, Any], ...]
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """What it says went wrong, in one string."""
        error = self.result.get("error") or {}
        return " ".join(str(error.get(key) or "") for key in ("what", "last_words", "next_step"))

    @property
    def rules(self) -> list[str]:
        """The rules that refused."""
        found = self.result.get("findings") or []
        return [f["rule"] for f in found if f["severity"] != "warning"]


class Moving:
    """A `qmigrate` on its way; its stderr is read as it comes."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(ValueError):  # closed by whoever gave it up
            for line in self.process.stderr or ():
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def until(self, wanted: Callable[[str], bool], deadline_s: float = MOVE_DEADLINE_S) -> str:
        """Return the first line of stderr that is `wanted`, whenever it came.

        Raises `HostError` with the last lines if none is by then, or by its end.
        """
        with self._news:
            self._news.wait_for(
                lambda: self._ended or any(map(wanted, self.lines)), timeout=deadline_s
            )
            found = [line for line in self.lines if wanted(line)]
        if not found:
            raise HostError(f"not said: {self.lines[-5:]}")
        return found[0]

    def until_phase(self, phase: str) -> dict[str, Any]:
        """Return the first progress of that phase (with --json)."""
        progress: dict[str, Any] = json.loads(self.until(lambda line: _phase(line) == phase))
        return progress

    def job_if_begun(self) -> str:
        """Return the job's id as soon as it is said, "" if it has ended and begun none."""
        try:
            return job_of(self.until(lambda line: job_of(line) is not None)) or ""
        except HostError:
            return ""

    def until_job(self) -> str:
        """Return the job's id as soon as it is said; raise `HostError` if none is begun."""
        if not (job := self.job_if_begun()):
            raise HostError(f"no job was begun: {self.finish()}")
        return job

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.wait(MOVE_DEADLINE_S)

    def finish(self) -> Moved:
        """Wait for its end; raise `HostError` if it does not come."""
        if self.process.stdout is None:
            raise HostError("nobody can read what it prints")
        try:
            self.process.wait(MOVE_DEADLINE_S)
        except subprocess.TimeoutExpired:
            what = f"it did not end within {MOVE_DEADLINE_S:g} s: {self.lines[-3:]}"
            raise HostError(what) from None
        finally:
            self.process.kill()
        stdout = self.process.stdout.read()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        return moved(self.process.returncode, stdout, "\n".join(self.lines))


def job_of(line: str) -> str | None:
    """Return the job that a line of progress names."""
    text = str(_document(line).get("text") or "")
    return text.removeprefix(JOB) if text.startswith(JOB) else None


def _phase(line: str) -> str | None:
    phase = _document(line).get("phase")
    return str(phase) if phase else None


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def moved(code: int, stdout: str, stderr: str) -> Moved:
    """Return what a `qmigrate` has printed, read."""
    lines = tuple(filter(None, map(_document, stderr.splitlines())))
    return Moved(code, _document(stdout), lines, stdout, stderr)
