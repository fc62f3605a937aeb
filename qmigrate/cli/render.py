"""What a command has to say, written for a terminal, a pipe or a program: the same data each time.

Results go to stdout, everything else to stderr. Names and QEMU's words come from other machines:
`printable` takes the teeth out of them, and rich never reads them as markup.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from qmigrate.core.errors import Problem

GAP = "  "  # between columns
NARROWEST = 6  # cells; narrower says nothing, so a tiny terminal wraps the lines instead


def printable(text: str) -> str:
    """Return `text` with control characters escaped: they would move the cursor or break a row."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under titles; a cell that is None is not known and is shown as ``-``."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    right: tuple[str, ...] = ()  # titles of the columns of numbers

    def cells(self) -> Iterable[tuple[str, ...]]:
        """Yield each row as printable text."""
        for row in self.rows:
            yield tuple("-" if cell is None else printable(cell) for cell in row)


def tab_separated(table: Table) -> str:
    """Return `table` as lines of tab-separated cells, titles first, nothing cut."""
    rows = [table.titles, *table.cells()]
    return "".join("\t".join(row) + "\n" for row in rows)


def problem_lines(problem: Problem) -> list[str]:
    """Return an error as lines: phase, host and cause, QEMU's last words, what to do next."""
    head = "".join(f"{printable(part)}: " for part in (problem.phase, problem.host) if part)
    first, *rest = problem.what.splitlines() or [problem.code]
    lines = [head + printable(first), *("  " + printable(line) for line in rest)]
    if problem.last_words:
        lines.append("  last words:")
        lines += ["    " + printable(line) for line in problem.last_words.splitlines()]
    if problem.next_step:
        step, *more = problem.next_step.splitlines()
        lines += [f"  next: {printable(step)}", *("        " + printable(line) for line in more)]
    return lines


def problem_document(problem: Problem, exit_code: int) -> dict[str, Any]:
    """Return the body of ``qmigrate.error/1``."""
    return {"exit": exit_code, "error": asdict(problem)}


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a person looks at `stream`; rich's own answer is bent by FORCE_COLOR."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


class Output:
    """The two streams and how the user wants them; every command writes through one of these."""

    def __init__(
        self,
        *,
        json: bool = False,
        color: bool = True,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.json = json
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.failed = False
        self.color = color and not os.environ.get("NO_COLOR")

    def write(self, text: str) -> None:
        """Write to stdout.

        A reader that has left (``| head``) is no reason to fail, let alone to stop a migration:
        the rest is dropped in silence. Where stdout cannot take it, as on a full disk, that is
        said on stderr and kept in `failed`, which becomes the exit code if all else went well.
        """
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except BrokenPipeError:
            silence(self.stdout)
        except OSError as exc:
            silence(self.stdout)
            self.failed = True
            what = f"standard output could not be written: {exc.strerror}"
            self.problem(Problem("incomplete", what))

    def say(self, line: str) -> None:
        """Write one line for people to stderr; if nobody can be told, go on."""
        try:
            self.stderr.write(line + "\n")
            self.stderr.flush()
        except OSError:
            silence(self.stderr)

    def document(self, schema: str, body: Mapping[str, Any]) -> None:
        """Write one JSON object to stdout: on one line in a pipe, indented on a terminal."""
        indent = 2 if self.stdout.isatty() else None
        self.write(json.dumps({"schema": schema, **body}, indent=indent, allow_nan=False) + "\n")

    def lines(self, lines: Iterable[str]) -> None:
        """Write lines of results to stdout."""
        self.write("".join(printable(line) + "\n" for line in lines))

    def fits_to_terminal(self) -> bool:
        """Tell whether a table will be cut to a terminal's width."""
        return is_terminal(self.stdout)

    def table(self, table: Table) -> None:
        """Write `table`: fitted to a terminal, tab-separated and whole in a pipe."""
        if not self.fits_to_terminal():
            self.write(tab_separated(table))
            return
        import shutil  # zlib, bz2, lzma: 15 ms

        width = shutil.get_terminal_size().columns  # $COLUMNS first, as everywhere
        self.write(fitted(table, width=width, color=self.color))

    def problems(self, problems: Sequence[tuple[Problem, int]]) -> None:
        """Write errors and their exit codes: the first is the verdict, the rest came with it."""
        if self.json:
            (first, code), *rest = problems
            body = problem_document(first, code)
            if rest:
                body["also"] = [asdict(problem) for problem, _ in rest]
            self.document("qmigrate.error/1", body)
            return
        for problem, _ in problems:
            self.problem(problem)

    def problem(self, problem: Problem) -> None:
        """Write one error to stderr, for people."""
        mark = "error:"
        if self.color and is_terminal(self.stderr):
            mark = f"\x1b[1;31m{mark}\x1b[0m"
        first, *rest = problem_lines(problem)
        self.say("\n".join([f"{mark} {first}", *rest]))


def fitted(table: Table, *, width: int, color: bool) -> str:
    """Return `table` in columns, cut to `width` cells with ``…`` where something is missing.

    Our own few lines, as rich's tables take 80 ms to import and drop whole columns when narrow.
    """
    from rich.cells import cell_len, set_cell_size  # knows how wide a character is

    rows = list(table.cells())
    columns = list(zip(table.titles, *rows, strict=True))
    natural = [max(map(cell_len, column)) for column in columns]
    fitting = column_widths(natural, width - len(GAP) * (len(natural) - 1))

    def line(cells: Sequence[str]) -> str:
        shown = []
        for cell, title, size in zip(cells, table.titles, fitting, strict=True):
            length = cell_len(cell)
            text = cell if length <= size else set_cell_size(cell, size - 1) + "…"
            space = " " * (size - length)
            shown.append(space + text if title in table.right else text + space)
        return GAP.join(shown).rstrip()

    head = line(table.titles)
    lines = [f"\x1b[1m{head}\x1b[0m" if color else head, *map(line, rows)]
    return "".join(text + "\n" for text in lines)


def column_widths(natural: Sequence[int], available: int) -> list[int]:
    """Take from the widest column, cell by cell, until the row fits or every column is narrow."""
    widths = list(natural)
    while sum(widths) > available and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def silence(stream: TextIO) -> None:
    """Point a stream that can no longer be written at /dev/null, or Python's exit complains."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)
