"""Shows a job on its way: a live line on a terminal, plain lines in a log, JSON lines for programs.

All of it on stderr, stdout is for the result. The views know no clock: an event says how old the
job is. Whatever the reporter says, a percentage that was shown never goes back.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from qmigrate.cli.render import Output, is_terminal, printable, silence
from qmigrate.core.model import Progress
from qmigrate.core.quantities import human_bytes, human_rate, human_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_INTERVAL_S = 5.0  # between plain lines within a phase: readable in a log, and proof of life
BAR_WIDTH = 20  # cells


class ProgressView(Protocol):
    """What a reporter is given."""

    def show(self, progress: Progress) -> None:
        """Take one event; must not block for long and must not raise."""

    def say(self, text: str) -> None:
        """Show a sentence for people that stays."""

    def end(self, elapsed_s: float) -> None:
        """Take note that the last phase ended at that age."""


class Ratchet:
    """Keeps a percentage between 0 and 100 and from going back; once known it stays known."""

    def __init__(self) -> None:
        self._highest: float | None = None

    def hold(self, progress: Progress) -> Progress:
        """Return `progress` with the percentage to show."""
        if progress.percent is not None:
            self._highest = max(self._highest or 0.0, min(100.0, progress.percent))
        return replace(progress, percent=self._highest)


def facts(progress: Progress) -> Iterator[str]:
    """Yield what is known besides phase and percentage, each as a few words."""
    if progress.rate_bps is not None:
        yield human_rate(progress.rate_bps)
    if progress.dirty_rate_bps is not None:
        yield f"dirty {human_rate(progress.dirty_rate_bps)}"
    if progress.passes is not None:
        yield f"pass {progress.passes}"
    if progress.remaining_bytes is not None:
        yield f"{human_bytes(progress.remaining_bytes)} left"
    if progress.text:
        yield printable(progress.text)
    if progress.transferred_bytes is not None:
        yield f"{human_bytes(progress.transferred_bytes)} sent"


def line(progress: Progress) -> str:
    """Return one event as a plain line."""
    percent = None if progress.percent is None else f"{progress.percent:.0f} %"
    words = [f"{printable(progress.phase):<11}", *filter(None, [percent]), *facts(progress)]
    return f"{human_seconds(progress.elapsed_s):>8}  " + "  ".join(words).rstrip()


class LineView:
    """A line when the phase or the text changes, and every `LINE_INTERVAL_S` in between."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._ratchet = Ratchet()
        self._shown: Progress | None = None

    def show(self, progress: Progress) -> None:
        """Write a line if there is news or the last one is old."""
        progress, last = self._ratchet.hold(progress), self._shown
        if (
            last is None
            or (progress.phase, progress.text) != (last.phase, last.text)
            or progress.elapsed_s - last.elapsed_s >= LINE_INTERVAL_S
        ):
            self._shown = progress
            self._out.say(line(progress))

    def say(self, text: str) -> None:
        """Write a line."""
        self._out.say(printable(text))

    def end(self, elapsed_s: float) -> None:
        """Add nothing: what follows in the log says it."""


class JsonView:
    """Every event as one JSON object a line, schema ``qmigrate.progress/1``."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._ratchet = Ratchet()

    def show(self, progress: Progress) -> None:
        """Write the event."""
        event = asdict(self._ratchet.hold(progress))
        self._out.say(json.dumps({"schema": "qmigrate.progress/1", **event}))

    def say(self, text: str) -> None:
        """Leave it out: stderr holds one JSON object a line."""

    def end(self, elapsed_s: float) -> None:
        """Add nothing: the result has the phases."""


@dataclass(slots=True)
class _Phase:
    name: str
    began_s: float
    text: str | None  # what it began with, as a job's id


class TtyView:
    """One line that is redrawn; a phase that has ended stays above it with its duration."""

    def __init__(self, redraw: Any, keep: Any) -> None:
        self._redraw, self._keep = redraw, keep
        self._ratchet = Ratchet()
        self._phase: _Phase | None = None
        self._elapsed_s = 0.0

    def show(self, progress: Progress) -> None:
        """Redraw the line."""
        progress = self._ratchet.hold(progress)
        self._elapsed_s = progress.elapsed_s
        if self._phase is None or self._phase.name != progress.phase:
            self.end_phase()
            self._phase = _Phase(progress.phase, progress.elapsed_s, progress.text)
        self._redraw(tty_line(progress))

    def say(self, text: str) -> None:
        """Leave a line above the one that is redrawn."""
        self._keep(printable(text))

    def end(self, elapsed_s: float) -> None:
        """Leave the last phase's line behind."""
        self._elapsed_s = max(self._elapsed_s, elapsed_s)
        self.end_phase()

    def end_phase(self) -> None:
        """Leave the current phase's line behind."""
        if self._phase:
            duration = human_seconds(self._elapsed_s - self._phase.began_s)
            words = f"{printable(self._phase.name):<11} {duration:>8}  "
            self._keep((words + printable(self._phase.text or "")).rstrip())
            self._phase = None


def tty_line(progress: Progress) -> "RenderableType":
    """Return the live line: phase, bar, percentage, age, and what else fits the width."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1), expand=True)
    for _ in range(4):
        grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    percent = progress.percent
    grid.add_row(
        Text(f"{printable(progress.phase):<11}", style="bold"),
        Text(f"{human_seconds(progress.elapsed_s):>8}"),
        # None is a bar that pulses: on its way, nobody knows how far.
        ProgressBar(total=None if percent is None else 100, completed=percent or 0,
                    width=BAR_WIDTH, animation_time=progress.elapsed_s),
        Text("     " if percent is None else f"{percent:3.0f} %"),
        Text("  ".join(facts(progress))),
    )  # fmt: skip
    return grid


class _Unbreakable:
    """A terminal that may go away (EIO after a hang-up): the job it shows must not."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or from the first failure on pretend to."""
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush, or pretend to."""
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def open_progress(out: Output) -> Iterator[ProgressView]:
    """Yield the view that suits stderr; on leaving, the terminal is as it was, cursor and all."""
    if out.json:
        yield JsonView(out)
    elif not is_terminal(out.stderr):
        yield LineView(out)
    else:
        with _live(out) as view:
            yield view


@contextmanager
def _live(out: Output) -> Iterator[TtyView]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(
        file=cast("TextIO", _Unbreakable(out.stderr)),
        force_terminal=True,
        no_color=not out.color,
        markup=False,
        highlight=False,
    )
    # auto_refresh would be a thread; events come often enough. What others print is not captured.
    live = Live(
        console=console, auto_refresh=False, transient=True,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    with live:
        view = TtyView(
            lambda picture: live.update(picture, refresh=True),
            lambda text: console.print(Text(text)),
        )
        try:
            yield view
        finally:
            view.end_phase()
