"""The relay's records: known bytes, limits, and whatever else a wire may bring."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmigrate.core.errors import ProtocolError
from qmigrate.transport.records import (
    CHUNK_LIMIT_BYTES,
    HEADER_BYTES,
    OFFSET_LIMIT,
    STREAM_LIMIT,
    Coding,
    Decoder,
    Header,
    Hello,
    Kind,
    Record,
    data_header,
    encode_bare,
    encode_hello,
    pack_header,
    parse_header_untrusted,
    parse_hello_untrusted,
    unpacked_length_untrusted,
)

KNOWN = (
    (data_header(3, 0x123456789, 4) + b"ABCD", "020000030000000400000001234567894142 4344"),
    (data_header(0, 0, 5, Coding.ZSTD), "02010000000000050000000000000000"),
    (encode_bare(Kind.ACK, 1, 65), "03000001000000000000000000000041"),
    (encode_bare(Kind.EOF, 0, 2**40), "04000000000000000000010000000000"),
    (encode_bare(Kind.RESET, 255), "050000ff000000000000000000000000"),
    (encode_bare(Kind.OPEN, 2), "06000002000000000000000000000000"),
    (
        encode_hello(Hello(2, 7, sends=True, standing=((0, 9),))),
        "01000002000000110000000000000007514d520101000100000000000000000009",
    ),
)


@pytest.mark.parametrize(("record", "text"), KNOWN)
def test_records_are_these_bytes(record: bytes, text: str) -> None:
    assert record.hex() == text.replace(" ", "")


def _decode(wire: bytes, steps: list[int]) -> list[Record]:
    decoder, records, at = Decoder(), [], 0
    for step in [*steps, len(wire)]:
        end = min(len(wire), at + step)
        while at < end:
            room = decoder.room()
            count = min(len(room), end - at)
            room[:count] = wire[at : at + count]
            at += count
            record = decoder.took_untrusted(count)
            if record is not None:
                records.append(record)
    return records


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=8),
    steps=st.lists(st.integers(1, 40), max_size=50),
)
def test_records_come_out_as_they_went_in_however_they_are_cut(
    payloads: list[bytes], steps: list[int]
) -> None:
    wire = b"".join(
        data_header(number, number * 1000, len(payload)) + payload
        if payload
        else encode_bare(Kind.ACK, number, 5)
        for number, payload in enumerate(payloads)
    )
    records = _decode(wire, steps)
    assert [bytes(record.payload) for record in records] == payloads
    assert [record.header.stream for record in records] == list(range(len(payloads)))


REFUSED = (
    ("an unknown kind", (9, 0, 0, 0, 0)),
    ("kind 0", (0, 0, 0, 0, 0)),
    ("an unknown coding", (2, 3, 0, 9, 0)),
    ("a record that claims 4 GiB", (2, 0, 0, 2**32 - 1, 0)),
    ("one byte more than a chunk", (2, 0, 0, CHUNK_LIMIT_BYTES + 1, 0)),
    ("no byte", (2, 0, 0, 0, 0)),
    ("compressed nothing", (2, 1, 0, 4, 0)),
    ("an ACK with a payload", (3, 0, 0, 1, 0)),
    ("a compressed EOF", (4, 1, 0, 0, 0)),
    ("a stream beyond the last", (2, 0, STREAM_LIMIT, 1, 0)),
    ("a slot beyond the last", (1, 0, 16, 7, 0)),
    ("an offset that never comes", (2, 0, 0, 1, OFFSET_LIMIT)),
    ("a RESET somewhere", (5, 0, 0, 0, 1)),
    ("a HELLO too short", (1, 0, 0, 6, 0)),
)


@pytest.mark.parametrize(("what", "fields"), REFUSED)
def test_what_is_out_of_bounds_is_refused(what: str, fields: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError):
        parse_header_untrusted(struct.pack("!BBHIQ", *fields))


@settings(max_examples=2000)
@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_any_sixteen_bytes_are_a_header_or_refused(header: bytes) -> None:
    try:
        parsed = parse_header_untrusted(header)
    except ProtocolError:
        return
    assert pack_header(parsed) == header
    assert parsed.length <= CHUNK_LIMIT_BYTES


@settings(max_examples=2000)
@given(st.binary(max_size=200), st.booleans())
def test_any_hello_is_read_or_refused(payload: bytes, whole: bool) -> None:
    if whole:
        payload = b"QMR\x01\x01" + struct.pack("!H", len(payload) // 10) + payload
    header = Header(Kind.HELLO, Coding.RAW, 1, max(7, len(payload)), 3)
    record = Record(header, memoryview(payload.ljust(7, b"\0")))
    try:
        hello = parse_hello_untrusted(record)
    except ProtocolError:
        return
    assert encode_hello(hello)[HEADER_BYTES:] == payload


def test_a_hello_comes_out_as_it_went_in() -> None:
    hello = Hello(3, 8, sends=False, standing=((0, 5), (7, 2**40)))
    (record,) = _decode(encode_hello(hello), [])
    assert parse_hello_untrusted(record) == hello


@pytest.mark.parametrize("length", [0, CHUNK_LIMIT_BYTES + 1, 2**32 - 1])
def test_a_record_that_would_grow_beyond_a_chunk_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        unpacked_length_untrusted(memoryview(struct.pack("!I", length) + b"x"))
