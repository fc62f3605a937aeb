"""What a prober remembers and answers."""

import pytest

from netsetup.errors import UsageError
from netsetup.probe_frames import ProbeKind, decode_untrusted, encode
from netsetup.probe_ledger import MAX_ANSWERS, MAX_TALLIES, Ledger
from netsetup.probe_report import Place
from tests.support.probe_talk import NONCE, Speaker

STRANGER = bytes.fromhex("020000000099")


def answer(sequence: int, size_bytes: int) -> bytes:
    return encode(
        NONCE,
        ProbeKind.ANSWER,
        source=STRANGER,
        sender=b"b" * 8,
        sequence=sequence,
        size_bytes=size_bytes,
    )


@pytest.mark.parametrize(
    ("sequence", "size_bytes", "answered"), [(1000, 46, 46), (1000, 1500, None), (2000, 46, None)]
)
def test_only_the_answer_to_an_ask_of_ours_counts(
    sequence: int, size_bytes: int, answered: int | None
) -> None:
    a = Speaker(1)
    a.ask(46, 0.0)  # sequence 1000
    assert a.get(answer(sequence, size_bytes), 0.001) is None
    assert a.ledger.answered_bytes == answered
    assert (a.ledger.latency_s is None) is (answered is None)


def test_an_ask_is_answered_to_its_sender_alone_with_its_sequence_and_size() -> None:
    a, b = Speaker(1), Speaker(2)
    ask = a.ask(1400, 0.0)
    assert ask is not None
    frame = b.get(ask, 0.0)
    assert frame is not None
    assert frame[:6] == a.ledger.mac
    probe = decode_untrusted(frame, NONCE)
    assert (probe.kind, probe.sequence, probe.size_bytes) == (ProbeKind.ANSWER, 1000, 1400)


@pytest.mark.parametrize(("arrives_with", "answered"), [(None, False), (20, False), (10, True)])
def test_what_arrives_in_another_vlan_is_noted_and_not_answered(
    arrives_with: int | None, answered: bool
) -> None:
    a, b = Speaker(1), Speaker(2, vlan_tag=10, strips=arrives_with)
    ask = a.ask(46, 0.0)
    assert ask is not None
    assert (b.get(ask, 0.0) is not None) is answered
    assert {heard.vlan for heard in b.ledger.heard()} == {arrives_with}


def test_a_frame_that_comes_again_is_counted_and_not_answered_again() -> None:
    a, b = Speaker(1), Speaker(2)
    ask = a.ask(46, 0.0)
    assert ask is not None
    assert b.get(ask, 0.0) is not None
    assert b.get(ask, 0.1) is None
    assert b.ledger.repeated == 1


def test_a_flood_is_answered_so_often_and_no_more_and_fills_no_memory() -> None:
    b = Speaker(2)
    answers = 0
    for number in range(MAX_ANSWERS + 100):
        frame = encode(
            NONCE,
            ProbeKind.ASK,
            source=STRANGER,
            sender=number.to_bytes(8),
            sequence=number,
            size_bytes=46,
        )
        answers += b.get(frame, 0.0) is not None
    assert answers == MAX_ANSWERS
    assert len(b.ledger.heard()) == MAX_TALLIES


def test_frames_before_the_bridge_prove_nothing_and_are_not_answered() -> None:
    a, b = Speaker(1), Speaker(2, blocked=True)
    ask = a.ask(46, 0.0)
    assert ask is not None
    assert b.get(ask, 0.0) is None
    (heard,) = b.ledger.heard()
    assert heard.place is Place.INTERFACE


def test_a_ledger_without_a_whole_nonce_is_refused() -> None:
    with pytest.raises(UsageError, match="16 octets"):
        Ledger(b"short", mac=STRANGER, sender=b"b" * 8, vlan_tag=None)
