"""A move's profile as a picture: a row a step, a bar in time, host by host."""

from collections.abc import Iterator, Sequence

from qmigrate.cli.render import Output, is_terminal, printable
from qmigrate.core.profile import HERE, Profile, Span, alone_s, idle_s

WIDEST = 120  # cells; wider bars are no easier to read
NARROWEST_BAR = 20
FIGURES = "      ms   alone"
_FULL, _LEFT, _RIGHT, _THIN, _WAIT = "█", "▌", "▐", "▏", "░"
_COLORS = {"work": "36", "wait": "2", "guest": "32", "still": "1;31", "copy": "34"}
_STANDS_STILL = frozenset(
    {"checks", "switchover", "journal, GO", "decide, journal", "cont", "stands still"}
)


def show_profile(out: Output, profile: Profile) -> None:
    """Write the picture to stdout, as wide as the terminal; in a pipe 100 cells wide."""
    import shutil

    width = 100
    if out.fits_to_terminal():
        width = min(WIDEST, shutil.get_terminal_size().columns)
    color = out.color and is_terminal(out.stdout)
    out.write("".join(line + "\n" for line in picture(profile, width=width, color=color)))


def picture(profile: Profile, *, width: int, color: bool) -> Iterator[str]:
    """Yield the lines of the picture.

    `alone` is the time in which nothing else was done anywhere: what a shorter step would save.
    Red: the guest stood still. Light: the host only waited.
    """
    names = 2 + max((len(printable(span.step)) for span in profile.spans), default=0)
    cells = max(NARROWEST_BAR, width - names - len(FIGURES) - 2)
    alone = alone_s(profile.spans)
    yield " " * names + axis(profile.wall_s, cells) + FIGURES
    if profile.guest:
        yield _paint("guest", "1", color=color)
    for span in profile.guest:
        kind = "still" if span.step in _STANDS_STILL else "guest"
        words = f"  {span.step} on {span.where}" if span.where else f"  {span.step}"
        yield _row(words[:names], span, None, (profile.wall_s, cells), (names, kind, color))
    for where, rows in _by_place(profile, alone):
        yield _paint(printable(where), "1", color=color)
        for span, only_s in rows:
            scale, look = (profile.wall_s, cells), (names, _kind(span), color)
            yield _row("  " + printable(span.step), span, only_s, scale, look)
    serial_s = sum(alone)
    yield (
        f"{profile.wall_s * 1e3:.0f} ms in all; {serial_s * 1e3:.0f} of them one thing at a time, "
        f"{idle_s(profile) * 1e3:.0f} accounted for by no step"
    )


def _by_place(
    profile: Profile, alone: Sequence[float]
) -> Iterator[tuple[str, list[tuple[Span, float]]]]:
    places = dict.fromkeys([HERE, *(span.where for span in profile.spans)])
    for place in places:
        pairs = zip(profile.spans, alone, strict=True)
        rows = [(span, only_s) for span, only_s in pairs if span.where == place]
        if rows:
            yield place, rows


def _kind(span: Span) -> str:
    if span.waits:
        return "wait"
    if span.step in _STANDS_STILL:
        return "still"
    return "copy" if span.step == "copy" or span.step.startswith("pass ") else "work"


def _row(
    words: str,
    span: Span,
    only_s: float | None,
    scale: tuple[float, int],
    look: tuple[int, str, bool],
) -> str:
    names, kind, color = look
    drawn = bar(span, *scale, waits=kind == "wait")
    figures = f"{span.duration_s * 1e3:10.1f}"
    if only_s is not None and only_s >= 0.00005:
        figures += f"{only_s * 1e3:8.1f}"
    return f"{words:<{names}}{_paint(drawn, _COLORS[kind], color=color)}{figures}".rstrip()


def bar(span: Span, wall_s: float, cells: int, *, waits: bool = False) -> str:
    """Return a bar of exactly `cells` cells, to half a cell; the shortest is a thin line."""
    if wall_s <= 0:
        return " " * cells
    halves = 2 * cells
    begin = min(halves - 1, max(0, round(span.start_s / wall_s * halves)))
    end = min(halves, max(0, round(span.end_s / wall_s * halves)))
    drawn = ""
    for cell in range(cells):
        first = begin <= 2 * cell < end
        second = begin <= 2 * cell + 1 < end
        if waits and (first or second):
            drawn += _WAIT
        else:
            drawn += {(True, True): _FULL, (True, False): _LEFT, (False, True): _RIGHT}.get(
                (first, second), " "
            )
    if not drawn.strip():
        at = begin // 2
        drawn = drawn[:at] + _THIN + drawn[at + 1 :]
    return drawn


def axis(wall_s: float, cells: int) -> str:
    """Return a scale with a few round numbers, `cells` wide; the first carries the unit."""
    steps = [base * 10.0**power for power in range(-3, 4) for base in (1, 2, 5)]
    step_s = next((s for s in steps if wall_s / s <= max(2, cells // 10)), steps[-1])
    drawn = [" "] * cells
    number = 0
    while number * step_s <= wall_s:
        text = "0 s" if number == 0 else f"{number * step_s:g}"
        at = round(number * step_s / wall_s * cells) if wall_s > 0 else 0
        if at + len(text) <= cells:
            drawn[at : at + len(text)] = text
        number += 1
    return "".join(drawn)


def _paint(text: str, code: str, *, color: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if color else text
