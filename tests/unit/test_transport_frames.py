"""The link's codec: known bytes, every cut, and whatever else may come."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmigrate.core.errors import ProtocolError
from qmigrate.core.model import Side
from qmigrate.transport.frames import (
    CONTROL_LIMIT_BYTES,
    MESSAGE_LIMIT_BYTES,
    TOKEN_BYTES,
    Frame,
    FrameDecoder,
    Generation,
    Hello,
    Kind,
    Offer,
    Pong,
    encode,
    encode_decline,
    encode_generation,
    encode_hello,
    encode_offer,
    encode_ping,
    encode_pong,
    parse_decline_untrusted,
    parse_generation_untrusted,
    parse_hello_untrusted,
    parse_offer_untrusted,
    parse_ping_untrusted,
    parse_pong_untrusted,
)

# A loaded machine is no finding.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
HELLO = Hello(1, "j", Side.SOURCE, "b", 7, frozenset({"direct"}), Generation(7, 2))
OFFER = Offer(3, "ram0", b"\x11" * TOKEN_BYTES, b"\x22" * TOKEN_BYTES)

KNOWN = [
    (encode(Kind.MESSAGE, b"hi"), "04 00000002 6869"),
    (encode(Kind.BYE), "07 00000000"),
    (encode_generation(Kind.CHOOSE, Generation(1, 258)), "02 00000008 00000001 00000102"),
    (encode_ping(9), "05 00000008 0000000000000009"),
    (
        encode_pong(Pong(9, 256, -1)),
        "06 00000018 0000000000000009 0000000000000100 ffffffffffffffff",
    ),
    (encode_offer(OFFER), "08 00000048 00000003" + "11" * 32 + "22" * 32 + "72616d30"),
    (encode_decline(3, "no"), "09 00000006 00000003 6e6f"),
    (
        encode_hello(HELLO),
        "01 00000069"
        + b'{"protocol":1,"job":"j","side":"source","boot_id":"b","incarnation":7,'
        b'"features":["direct"],"last":[7,2]}'.hex(),
    ),
]

PARSERS = {
    Kind.HELLO: parse_hello_untrusted,
    Kind.CHOOSE: parse_generation_untrusted,
    Kind.PING: parse_ping_untrusted,
    Kind.PONG: parse_pong_untrusted,
    Kind.OFFER: parse_offer_untrusted,
    Kind.DECLINE: parse_decline_untrusted,
}


@pytest.mark.parametrize(("frame", "octets"), KNOWN)
def test_frames_are_these_bytes(frame: bytes, octets: str) -> None:
    assert frame.hex() == octets.replace(" ", "")


@pytest.mark.parametrize(
    ("frame", "parse", "value"),
    [
        (encode_hello(HELLO), parse_hello_untrusted, HELLO),
        (
            encode_generation(Kind.CHOSEN, Generation(5, 6)),
            parse_generation_untrusted,
            Generation(5, 6),
        ),
        (encode_ping(2**64 - 1), parse_ping_untrusted, 2**64 - 1),
        (encode_pong(Pong(1, -2, 3)), parse_pong_untrusted, Pong(1, -2, 3)),
        (encode_offer(OFFER), parse_offer_untrusted, OFFER),
        (encode_decline(3, "kein Weg"), parse_decline_untrusted, (3, "kein Weg")),
    ],
)
def test_what_was_said_is_what_is_heard(frame: bytes, parse: object, value: object) -> None:
    (decoded,) = FrameDecoder().feed_untrusted(frame)
    assert parse(decoded.payload) == value  # type: ignore[operator]


@untimed
@given(
    st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=200)), max_size=12),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_frames_come_out_the_same_however_the_bytes_are_cut(
    said: list[tuple[Kind, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(encode(kind, payload) for kind, payload in said)
    decoder, got, at, turn = FrameDecoder(), [], 0, 0
    while at < len(stream):
        step = cuts[turn % len(cuts)]
        got += decoder.feed_untrusted(stream[at : at + step])
        at, turn = at + step, turn + 1
    assert got == [Frame(kind, payload) for kind, payload in said]
    assert decoder.pending_bytes == 0


@pytest.mark.parametrize(
    "header",
    [
        "00 00000000",
        "0a 00000000",
        "ff ffffffff",
        "04 01000001",
        "04 ffffffff",
        "01 00001001",
        "05 00001001",
    ],
)
def test_a_frame_is_refused_by_its_header_alone(header: str) -> None:
    decoder = FrameDecoder()
    with pytest.raises(ProtocolError):
        decoder.feed_untrusted(bytes.fromhex(header))


def test_the_limits_themselves_are_allowed_and_one_more_is_not() -> None:
    for kind, limit in ((Kind.MESSAGE, MESSAGE_LIMIT_BYTES), (Kind.OFFER, CONTROL_LIMIT_BYTES)):
        (frame,) = FrameDecoder().feed_untrusted(encode(kind, bytes(limit)))
        assert len(frame.payload) == limit
        with pytest.raises(ValueError, match=kind.name):
            encode(kind, bytes(limit + 1))


@untimed
@given(st.lists(st.binary(max_size=64), max_size=20))
def test_any_bytes_make_frames_or_one_error_and_hold_no_more_than_came(chunks: list[bytes]) -> None:
    decoder, fed = FrameDecoder(), 0
    try:
        for chunk in chunks:
            frames = decoder.feed_untrusted(chunk)
            fed += len(chunk)
            assert decoder.pending_bytes <= fed
            for frame in frames:
                parse = PARSERS.get(frame.kind)
                if parse:
                    parse(frame.payload)  # type: ignore[operator]
    except ProtocolError:
        return


@pytest.mark.parametrize("kind", PARSERS)
@untimed
@given(payload=st.binary(max_size=300))
def test_any_payload_is_a_value_or_one_error(kind: Kind, payload: bytes) -> None:
    try:
        PARSERS[kind](payload)  # type: ignore[operator]
    except ProtocolError:
        return


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@untimed
@given(field=st.sampled_from(list(HELLO.__dataclass_fields__)), value=_JSON)
def test_a_hello_with_any_field_spoilt_is_a_hello_or_one_error(field: str, value: object) -> None:
    import json

    (frame,) = FrameDecoder().feed_untrusted(encode_hello(HELLO))
    fields = json.loads(frame.payload)
    fields[field] = value
    try:
        hello = parse_hello_untrusted(json.dumps(fields).encode())
    except ProtocolError:
        return
    assert isinstance(getattr(hello, field), type(getattr(HELLO, field)))


def test_what_a_later_version_adds_is_passed_over() -> None:
    (frame,) = FrameDecoder().feed_untrusted(encode_hello(HELLO))
    assert parse_hello_untrusted(frame.payload[:-1] + b',"new":[1]}') == HELLO


@pytest.mark.parametrize("payload", [b"", b"[" * 3000, b"{}", b"\xff", b"1", b'"\\ud800"'])
def test_what_is_no_hello_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="HELLO"):
        parse_hello_untrusted(payload)
