"""From numbered probes and their replies to a guest's outage, and to proof that it is one guest.

Pure: times are arguments, seconds of one clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from qmigrate.lab.workload import Reply, Verdict

SILENCE_S = 0.5  # of unanswered probes at the end: the guest is dead


@dataclass(frozen=True, slots=True)
class Outage:
    """What the network saw of a period."""

    lost_ms: float  # longest unbroken run of unanswered probes
    lost_probes: int
    longest_gap_ms: float | None  # longest silence between two replies; None: there were no two
    noise_floor_ms: float | None  # the same of the control period; None: there was none
    probes: int  # sent in the period
    own_delay_ms: float | None  # longest time that the observer itself did not get to send


@dataclass(slots=True)
class Period:
    """Probes sent between two marks, and the replies to them whenever they came."""

    name: str
    sent: dict[int, float] = field(default_factory=dict)  # number: when
    replies: list[Reply] = field(default_factory=list)

    def until(self, at_s: float) -> "Period":
        """Return the part that concerns probes sent up to `at_s`."""
        sent = {number: when for number, when in self.sent.items() if when <= at_s}
        return Period(self.name, sent, [reply for reply in self.replies if reply.probe in sent])


def summarise(period: Period, control: Period | None, *, interval_s: float) -> Outage:
    """Reduce a period to figures.

    Each lost probe stands for the interval that it opened: a run of them spans from the sending of
    the first to that of the last, plus one interval. A silence belongs to the period in which it
    ends, so that one which begins right at the mark is not missed.
    """
    answered = {reply.probe for reply in period.replies}
    longest_s = 0.0
    first_lost_s: float | None = None
    for number, at_s in period.sent.items():
        if number in answered:
            first_lost_s = None
            continue
        first_lost_s = at_s if first_lost_s is None else first_lost_s
        longest_s = max(longest_s, at_s - first_lost_s + interval_s)
    began_s = min(period.sent.values(), default=float("inf"))
    replies = [*(control.replies if control else ()), *period.replies]
    silences = list(pairwise(sorted(reply.at_s for reply in replies)))
    return Outage(
        lost_ms=round(longest_s * 1e3, 2),
        lost_probes=len(period.sent.keys() - answered),
        longest_gap_ms=_longest_ms(silence for silence in silences if silence[1] >= began_s),
        noise_floor_ms=_longest_ms(silence for silence in silences if silence[1] < began_s),
        probes=len(period.sent),
        own_delay_ms=_longest_ms(pairwise(period.sent.values())),
    )


def _longest_ms(spans: Iterable[tuple[float, float]]) -> float | None:
    longest_s = max((end - begin for begin, end in spans), default=None)
    return None if longest_s is None else round(longest_s * 1e3, 2)


def find_problem(replies: Sequence[Reply], sent: dict[int, float]) -> str:
    """Say why `replies` cannot come from one unbroken run of one guest that is well; else ""."""
    if not replies:  # a few milliseconds between two marks prove nothing
        silent = bool(sent) and max(sent.values()) - min(sent.values()) > SILENCE_S
        return "the guest does not answer" if silent else ""
    ordered = sorted(replies, key=lambda reply: reply.probe)
    for earlier, later in pairwise(ordered):
        if problem := _contradiction(earlier, later):
            return problem
    last = ordered[-1]
    if last.memory is Verdict.BROKEN:
        return f"the guest's memory is wrong ({last.bad_pages} bad pages)"
    if last.disk is Verdict.BROKEN:
        return "the log on the guest's disk is wrong"
    if sent and max(sent.values()) - sent.get(last.probe, min(sent.values())) > SILENCE_S:
        return "the guest does not answer any more"
    return ""


def _contradiction(earlier: Reply, later: Reply) -> str:
    if earlier.boot_id != later.boot_id:
        return "the guest was rebooted"
    if earlier.probe == later.probe:
        # A copy that is too old answers again what was waiting when it was taken.
        return f"probe {later.probe} was answered twice: a second or older copy of the guest runs"
    if later.answered_before <= earlier.answered_before:
        return (
            f"the guest's counter went back from {earlier.answered_before} to "
            f"{later.answered_before}: an older copy of it answered"
        )
    if later.written < earlier.written:
        return "the guest's memory went back: an older copy of it answered"
    return ""


class History:
    """All that an observer has seen, with what is no longer needed forgotten.

    Kept are the current period and the one before it, as the control; of older ones the last reply,
    so that a guest that goes back is seen over any mark, and the first problem.
    """

    def __init__(self) -> None:
        self._control: Period | None = None
        self._current = Period("start")
        self._anchor: Reply | None = None
        self._problem = ""

    @property
    def name(self) -> str:
        """Of the current period."""
        return self._current.name

    def sent(self, number: int, at_s: float) -> None:
        """Note that a probe left."""
        self._current.sent[number] = at_s

    def replied(self, reply: Reply) -> None:
        """File a reply by its probe; one to a forgotten probe is dropped."""
        for period in filter(None, (self._current, self._control)):
            if reply.probe in period.sent:
                period.replies.append(reply)
                return

    def mark(self, name: str) -> None:
        """Begin a period; the current one becomes the control."""
        if self._control:
            self._problem = self._problem or self._judge(self._control, None)
            if self._control.replies:
                self._anchor = max(self._control.replies, key=lambda reply: reply.probe)
        self._control, self._current = self._current, Period(name)

    def report(self, until_s: float, *, interval_s: float) -> tuple[Outage, str]:
        """Return figures and problem of what was sent up to `until_s`."""
        current = self._current.until(until_s)
        outage = summarise(current, self._control, interval_s=interval_s)
        return outage, self._problem or self._judge(self._control, current)

    def last_reply(self) -> Reply | None:
        """Return the newest reply by its probe's number."""
        replies = [
            *self._current.replies[-1:],
            *(self._control.replies[-1:] if self._control else ()),
        ]
        return replies[0] if replies else self._anchor

    def _judge(self, control: Period | None, current: Period | None) -> str:
        periods = [period for period in (control, current) if period]
        replies = [reply for period in periods for reply in period.replies]
        sent = {number: at_s for period in periods for number, at_s in period.sent.items()}
        return find_problem([self._anchor, *replies] if self._anchor else replies, sent)
