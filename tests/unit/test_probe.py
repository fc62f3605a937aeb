import json
import socket
from dataclasses import replace

import pytest

from qmigrate.core.errors import ProtocolError, UsageError
from qmigrate.lab.outage import History, Outage, Period, find_problem, summarise
from qmigrate.lab.probe import Observer, Target
from qmigrate.lab.workload import (
    REPLY,
    REPLY_MAGIC,
    EchoCheck,
    EchoReport,
    Reply,
    Verdict,
    parse_reply_untrusted,
    parse_state_untrusted,
)

BOOT = "0f1e2d3c-4b5a-4678-8899-aabbccddeeff"
OTHER_BOOT = "1f1e2d3c-4b5a-4678-8899-aabbccddeeff"
INTERVAL_S = 0.002


def reply(probe: int, at_s: float | None = None, **changed: object) -> Reply:
    at_s = probe * INTERVAL_S + 0.0005 if at_s is None else at_s
    usual = Reply(at_s, probe, probe, Verdict.INTACT, Verdict.ABSENT, 1000 + probe, 0, probe, BOOT)
    return replace(usual, **changed)


def period(
    lost: set[int], *, count: int = 100, late: dict[int, float] | None = None, first: int = 0
) -> Period:
    numbers = range(first, first + count)
    replies = [reply(n, (late or {}).get(n)) for n in numbers if n not in lost]
    return Period("move", {n: n * INTERVAL_S for n in numbers}, replies)


@pytest.mark.parametrize(
    ("lost", "late", "lost_ms", "lost_probes", "gap_ms"),
    [
        (set(), {}, 0.0, 0, 2.0),
        ({50}, {}, 2.0, 1, 4.0),
        (set(range(50, 60)), {}, 20.0, 10, 22.0),
        (set(range(50, 60)) | {80, 81}, {}, 20.0, 12, 22.0),
        (set(range(90, 100)), {}, 20.0, 10, 2.0),
        ({0, 1, 2}, {}, 6.0, 3, 2.0),
        (
            set(),
            dict.fromkeys(range(50, 75), 0.15),
            0.0,
            0,
            51.5,
        ),  # queued, all answered
    ],
)
def test_lost_probes_and_silence_are_two_figures(lost, late, lost_ms, lost_probes, gap_ms) -> None:
    seen = summarise(period(lost, late=late), None, interval_s=INTERVAL_S)
    assert (seen.lost_ms, seen.lost_probes, seen.longest_gap_ms) == (lost_ms, lost_probes, gap_ms)
    assert (seen.probes, seen.own_delay_ms, seen.noise_floor_ms) == (100, 2.0, None)


def test_what_cannot_be_known_is_none_and_not_zero() -> None:
    nothing = summarise(Period("empty"), Period("control"), interval_s=INTERVAL_S)
    assert nothing == Outage(0.0, 0, None, None, 0, None)


def test_the_noise_floor_is_the_longest_gap_of_the_control() -> None:
    history = History()
    for name, lost in (("control", {3}), ("move", set(range(150, 160)))):
        history.mark(name)
        for n in range(100) if name == "control" else range(100, 200):
            history.sent(n, n * INTERVAL_S)
            if n not in lost:
                history.replied(reply(n))
    outage, problem = history.report(10.0, interval_s=INTERVAL_S)
    assert (outage.noise_floor_ms, outage.lost_ms, outage.longest_gap_ms) == (4.0, 20.0, 22.0)
    assert problem == ""


def test_a_silence_that_begins_right_at_the_mark_is_not_missed() -> None:
    control, move = period(set()), period(set(range(100, 150)), first=100)
    assert summarise(move, control, interval_s=INTERVAL_S).longest_gap_ms == 102.0


def test_a_report_does_not_count_probes_that_were_sent_after_it_was_asked_for() -> None:
    history = History()
    for n in range(100):
        history.sent(n, n * INTERVAL_S)
        if n < 50:
            history.replied(reply(n))
    outage, _ = history.report(49 * INTERVAL_S, interval_s=INTERVAL_S)
    assert (outage.probes, outage.lost_probes) == (50, 0)


PROBLEMS = {
    "the guest was rebooted": reply(20, boot_id=OTHER_BOOT),
    "counter went back from 19 to 7": reply(20, answered_before=7),
    "counter went back from 19 to 19": reply(20, answered_before=19),
    "memory went back": reply(20, written=5),
    "answered twice": reply(19, answered_before=20),
    "3 bad pages": reply(20, memory=Verdict.BROKEN, bad_pages=3),
    "log on the guest's disk is wrong": reply(20, disk=Verdict.BROKEN),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_replies_that_are_not_one_unbroken_run_are_a_problem(problem: str) -> None:
    before = [reply(n) for n in range(20)]
    sent = {n: n * INTERVAL_S for n in range(21)}
    assert find_problem([*before, reply(20)], sent) == ""
    assert problem in find_problem([*before, PROBLEMS[problem]], sent)


def test_a_guest_that_went_back_is_seen_over_marks_and_for_ever() -> None:
    history = History()
    for n, name in enumerate(["a", "b", "c", "d", "e"]):
        history.mark(name)
        history.sent(n, n * INTERVAL_S)
        history.replied(reply(n, answered_before=1 if name == "d" else n * 10))
        went_back = "went back" in history.report(10.0, interval_s=INTERVAL_S)[1]
        assert went_back is (name in "de")
    for name in ("f", "g", "h"):
        history.mark(name)
    assert "went back" in history.report(10.0, interval_s=INTERVAL_S)[1]


@pytest.mark.parametrize(
    ("answered", "silent"), [(1000, False), (800, False), (700, True), (0, True)]
)
def test_half_a_second_of_silence_at_the_end_is_death(answered: int, *, silent: bool) -> None:
    sent = {n: n * INTERVAL_S for n in range(1000)}
    problem = find_problem([reply(n) for n in range(answered)], sent)
    assert ("does not answer" in problem) is silent


def test_a_moment_without_a_reply_is_no_death() -> None:
    assert find_problem([], {n: n * INTERVAL_S for n in range(200)}) == ""
    assert find_problem([], {n: n * INTERVAL_S for n in range(300)}) == "the guest does not answer"


def test_a_period_without_any_reply_is_silence_though_the_guest_once_answered() -> None:
    history = History()
    history.sent(0, 0.0)
    history.replied(reply(0))
    for name in ("control", "move"):
        history.mark(name)
        for n in range(1, 1001):
            history.sent(n, n * INTERVAL_S)
    assert "does not answer" in history.report(10.0, interval_s=INTERVAL_S)[1]


# Recorded from the linux guest: socket.sendto((5).to_bytes(8, "little"), (guest, 7)), recv().hex().
REPLY_HEX = (
    "050000000000000051574c31010000000901000000000000c014000000000000001000000000000000000000"
    "0000000019e98a3c790b12903b110000000000006139346634356163"
    "2d306365352d343630642d393738392d633636376433333363316163"
)


def test_a_reply_is_read_as_the_guest_laid_it_out() -> None:
    datagram = bytes.fromhex(REPLY_HEX)
    boot = "a94f45ac-0ce5-460d-9789-c667d333c1ac"
    expected = Reply(1.5, 5, 265, Verdict.INTACT, Verdict.ABSENT, 5312, 0, 4411, boot)
    assert parse_reply_untrusted(datagram, 1.5) == expected
    assert parse_reply_untrusted(datagram + bytes(1000), 1.5) == expected  # padded to the probe


@pytest.mark.parametrize("at", [8, 12, 13, 64])
def test_a_stranger_s_datagram_is_refused(at: int) -> None:
    datagram = bytearray.fromhex(REPLY_HEX)
    datagram[at] = 0xEE
    with pytest.raises(ProtocolError):
        parse_reply_untrusted(bytes(datagram), 0.0)
    with pytest.raises(ProtocolError):
        parse_reply_untrusted(bytes(datagram[:99]), 0.0)


STATE = (
    b'{"boot_id": "b", "uptime_ms": 2471, "answered_before": 307, "memory": "intact", '
    b'"pages": 8192, "written": 16390, "bad_pages": 0, "chain": "80b7cab4bf318922", '
    b'"rate_mib": 20, "disk": "absent", "records": 0, "bad_records": 0}\n'
)


def test_a_state_is_typed_at_the_door() -> None:
    state = parse_state_untrusted(STATE)
    assert (state.memory, state.disk, state.passes) == (Verdict.INTACT, Verdict.ABSENT, 2)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello\n",
        b"[]",
        b"{}",
        STATE.replace(b"8192", b'"8192"'),
        STATE.replace(b"8192", b"true"),
        STATE.replace(b'"intact"', b'"fine"'),
        STATE.replace(b'"records": 0, ', b""),
    ],
)
def test_what_is_no_state_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_state_untrusted(line)


def test_a_command_that_the_guest_refuses_is_the_caller_s_fault() -> None:
    with pytest.raises(UsageError, match="no such page"):
        parse_state_untrusted(b'{"error": "not a command, or no such page"}')


def test_an_echo_is_checked_byte_by_byte_whatever_its_pieces() -> None:
    check = EchoCheck()
    check.sent(b"line 1\n", 0.0)
    check.sent(b"line 2\n", 0.02)
    check.received(b"line 1\nli", 0.021)
    check.received(b"ne 2\n", 0.05)
    assert check.report(9.0) == EchoReport(None, 29.0, 14)  # nothing is awaited: no stall


def test_a_stall_that_still_lasts_counts_and_a_restart_forgets_it() -> None:
    check = EchoCheck()
    check.sent(b"line 1\n", 1.0)
    assert check.report(1.5).longest_stall_ms == 500.0
    assert check.report(2.0, restart=True).longest_stall_ms == 1000.0
    assert check.report(2.25).longest_stall_ms == 250.0


@pytest.mark.parametrize(
    ("came", "why"), [(b"line 2\n", "came back as"), (b"line 1\nx", "more came back")]
)
def test_a_wrong_byte_breaks_the_connection_for_good(came: bytes, why: str) -> None:
    check = EchoCheck()
    check.sent(b"line 1\n", 0.0)
    check.received(came, 0.1)
    assert why in (check.broken or "")
    check.received(b"line 1\n", 0.2)
    assert why in (check.report(0.3).broken or "")


def test_probes_that_waited_for_the_guests_address_accuse_nobody(capsys) -> None:
    """The kernel queues them until ARP has an answer; newer ones overtake them (seen: 166 to 0)."""

    def answer(probe: int, answered_before: int) -> bytes:
        return REPLY.pack(
            probe, REPLY_MAGIC, 1, 0, 0, answered_before, 9, 9, 0, 0, 9, BOOT.encode()
        )

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        guest.bind(("127.0.0.1", 0))
        observer = Observer(Target("127.0.0.1", guest.getsockname()[1], tcp=False))
        try:
            for now_s in (0.0, 1.0, 1.002):  # 0 waited, 2 overtook it
                observer._send_probe(now_s)
            here = guest.recvfrom(99)[1]
            for numbers in ((2, 0), (0, 1), (1, 2)):
                guest.sendto(answer(*numbers), here)
            observer._receive()
            observer._send_probe(1.004)
            guest.sendto(answer(3, 3), here)
            observer._receive()
            observer._report(1.005, 1.005)
        finally:
            observer.close()
    ready, report = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready["event"] == "ready"
    assert (report["problem"], report["outage"]["probes"]) == (None, 1)
