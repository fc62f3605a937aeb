"""The ladder, the budget and the buffers: what they decide on, as tables."""

import os

import pytest

from qmigrate.core.errors import ProtocolError
from qmigrate.transport.packing import ZLIB, ZSTD, Codec, Packer, unpack_untrusted
from qmigrate.transport.rate import (
    BURST_S,
    OFF,
    ZSTD_LADDER,
    Budget,
    Ladder,
    Rung,
    Span,
    chunk_bytes,
    unsent_bytes,
)
from qmigrate.transport.records import CHUNK_LIMIT_BYTES, UNPACKED, Coding

MB = 1_000_000
# Measured on one core of typical memory (facts/transport §5).
TYPICAL = (Rung(-1, 0.42, 292 * MB), Rung(1, 0.375, 307 * MB), Rung(3, 0.345, 184 * MB))
RANDOM = (Rung(-1, 1.0, 3300 * MB), Rung(1, 1.0, 3300 * MB), Rung(3, 1.0, 3300 * MB))


def _busy(link_bps: float) -> Span:
    return Span(1.0, 1, int(link_bps), int(link_bps), sending_s=0.9)


@pytest.mark.parametrize(
    ("what", "link_bps", "rungs", "level"),
    [
        ("200 Mbit/s", 25 * MB, TYPICAL, 3),
        ("1 Gbit/s", 125 * MB, TYPICAL, 1),
        ("10 Gbit/s: one core packs slower than that", 1250 * MB, TYPICAL, OFF),
        ("200 Mbit/s, memory that does not pack", 25 * MB, RANDOM, OFF),
        ("1 Gbit/s, memory that does not pack", 125 * MB, RANDOM, OFF),
        ("200 Mbit/s, zlib", 25 * MB, (Rung(1, 0.363, 79 * MB),), 1),
        ("1 Gbit/s, zlib", 125 * MB, (Rung(1, 0.363, 79 * MB),), OFF),
    ],
)
def test_the_rung_that_promises_most_is_taken_and_none_where_none_pays(
    what: str, link_bps: float, rungs: tuple[Rung, ...], level: int
) -> None:
    ladder = Ladder(ZSTD_LADDER).after(_busy(link_bps)).tried(rungs, 1.0)
    chosen = ladder.after(_busy(link_bps))
    if chosen.level != level:  # within the gain that is asked for: as good as the other
        promised = {rung.level: ladder.promise(rung, 1) for rung in rungs}
        assert promised[level] <= 1.1 * promised[chosen.level], (what, chosen.why)
    assert (chosen.level == OFF) == (level == OFF), (what, chosen.why)


def test_nothing_is_packed_or_tried_while_the_link_is_not_the_limit() -> None:
    ladder = Ladder(ZSTD_LADDER).after(Span(1.0, 1, 900 * MB, 900 * MB, sending_s=0.2))
    assert ladder.level == OFF
    assert not ladder.wants_trial(100.0)


def test_a_rung_that_does_not_keep_its_promise_is_left() -> None:
    ladder = Ladder(ZSTD_LADDER).after(_busy(125 * MB)).tried(TYPICAL, 1.0).after(_busy(125 * MB))
    assert ladder.level != OFF
    # Others need the core: 60 MB/s of payload, and the wire waits.
    slow = Span(1.0, 1, 60 * MB, 23 * MB, sending_s=0.05, packing_s=0.9)
    for _ in range(5):
        ladder = ladder.after(slow)
    assert ladder.level == OFF or ladder.promise(ladder.rungs[-1], 1) > 125 * MB


def test_a_link_that_got_faster_is_tried_again_in_time() -> None:
    ladder = Ladder(ZSTD_LADDER).after(_busy(25 * MB)).tried(TYPICAL, 1.0).after(_busy(25 * MB))
    assert ladder.level != OFF
    idle = Span(1.0, 1, 180 * MB, 62 * MB, sending_s=0.02, packing_s=0.97)
    levels = [ladder.level]
    for _ in range(60):
        ladder = ladder.after(idle)
        levels.append(ladder.level)
    assert OFF in levels


def test_a_budget_is_kept_over_everything_that_asks() -> None:
    budget, now_s, sent = Budget(10 * MB), 0.0, 0
    while now_s < 1.0:
        wait_s = budget.wait_s(now_s)
        if wait_s:
            now_s += max(wait_s, 1e-6)
            continue
        budget.spend(100_000, now_s)
        sent += 100_000
    assert sent == pytest.approx(10 * MB * (1 + BURST_S), rel=0.03)


def test_a_budget_that_is_changed_keeps_what_is_owed_in_bytes() -> None:
    budget = Budget(1 * MB)
    budget.spend(2 * MB, 0.0)
    budget.change(4 * MB, 1.0)
    assert budget.wait_s(1.0) == pytest.approx(0.25 - BURST_S)
    budget.change(None, 1.0)
    assert budget.wait_s(1.0) == 0


@pytest.mark.parametrize(
    ("link_bps", "unsent", "chunk"),
    [(25 * MB, 128 << 10, 50_000), (125 * MB, 625_000, 250_000), (5000 * MB, 4 << 20, 256 << 10)],
)
def test_what_waits_in_front_of_a_wire_is_five_milliseconds_of_it(
    link_bps: float, unsent: int, chunk: int
) -> None:
    assert unsent_bytes(link_bps) == unsent
    assert chunk_bytes(link_bps) == chunk


CODECS = [
    pytest.param(ZLIB, id="zlib"),
    pytest.param(ZSTD, id="zstd", marks=pytest.mark.skipif(ZSTD is None, reason="no zstd here")),
]


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_packed_is_unpacked_to_the_same(codec: Codec) -> None:
    data = os.urandom(1000) + bytes(50_000) + b"abc" * 5000
    for level in codec.ladder[1:]:
        packed = Packer(codec).pack(memoryview(data), level)
        assert packed is not None
        assert len(packed) < len(data) // 4
        assert bytes(unpack_untrusted(codec.coding, memoryview(packed))) == data


@pytest.mark.parametrize("codec", CODECS)
def test_what_does_not_pack_is_left_alone(codec: Codec) -> None:
    assert Packer(codec).pack(memoryview(os.urandom(50_000)), 1) is None


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_and_every_damage_is_a_protocol_error(codec: Codec) -> None:
    pack = codec.packer(1)
    bomb = pack(memoryview(bytes(64 << 20)))
    small = pack(memoryview(b"abcd" * 1000))
    for payload in (
        UNPACKED.pack(CHUNK_LIMIT_BYTES) + bomb,  # becomes 64 MiB, says one
        UNPACKED.pack(64 << 20) + bomb,
        UNPACKED.pack(3999) + small,
        UNPACKED.pack(4001) + small,
        UNPACKED.pack(4000) + small[:-1],
        UNPACKED.pack(4000) + small + b"x",
        UNPACKED.pack(4000) + b"x" + small,
        UNPACKED.pack(4000) + b"x",
    ):
        with pytest.raises(ProtocolError):
            unpack_untrusted(codec.coding, memoryview(payload))


def test_a_coding_that_this_host_does_not_have_is_a_protocol_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qmigrate.transport.packing.ZSTD", None)
    with pytest.raises(ProtocolError, match="ZSTD"):
        unpack_untrusted(Coding.ZSTD, memoryview(UNPACKED.pack(4) + b"abcd"))
