"""What the agents say to each other, to the byte and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmigrate.agent import peer
from qmigrate.core.errors import ProtocolError
from qmigrate.core.job import Announced, AnnounceReport, Mark, Transport, TwinFacts
from qmigrate.core.model import Shape

SHAPE = Shape("10.0.2", "pc-q35-10.0", "tcg", (), (), (), (("p", "m"),), (("vda", 5),))
SEEN = Announced("52:54:00:00:00:01", "192.0.2.7", "seen")
REPORT = AnnounceReport("br0", ("garp 192.0.2.7",), 0.5, (SEEN,))

KNOWN: list[tuple[peer.Message, str]] = [
    (
        peer.Load("ram", transport=Transport.RELAY_ZSTD, slots=2),
        '{"socket":"ram","ran":true,"transport":"relay+zstd","slots":2,"op":"Load"}',
    ),
    (peer.Loading(), '{"op":"Loading"}'),
    (peer.Ready(), '{"op":"Ready"}'),
    (peer.Go(run=True), '{"run":true,"alone":false,"op":"Go"}'),
    (peer.Ask(), '{"op":"Ask"}'),
    (peer.Refuse("why"), '{"reason":"why","op":"Refuse"}'),
    (peer.Loaded(), '{"op":"Loaded"}'),
    (peer.Running(None, None), '{"resume_us":null,"announced":null,"op":"Running"}'),
    (peer.Refused("x"), '{"reason":"x","op":"Refused"}'),
    (peer.Returned("x"), '{"reason":"x","op":"Returned"}'),
    (peer.Lost("x"), '{"reason":"x","op":"Lost"}'),
    (peer.Finish(), '{"op":"Finish"}'),
    (
        peer.Farewell(("t0",), (Mark("cont", 0.5),)),
        '{"leftovers":["t0"],"marks":[{"name":"cont","at_s":0.5}],"op":"Farewell"}',
    ),
]


@pytest.mark.parametrize(("message", "text"), KNOWN, ids=[text[-20:] for _, text in KNOWN])
def test_a_message_has_its_known_form(message: peer.Message, text: str) -> None:
    assert peer.encode(message) == text.encode()
    assert peer.decode_untrusted(text.encode()) == message


@pytest.mark.parametrize(
    "message",
    [
        peer.Twin(TwinFacts(7, SHAPE, (("n0", "t0"),))),
        peer.AreYouReady((SEEN,)),
        peer.Running(12, REPORT),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_nested_comes_back_as_it_was(message: peer.Message) -> None:
    assert peer.decode_untrusted(peer.encode(message)) == message


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"op":"Nonsense"}',
        b'{"op":7}',
        b'{"op":"Go"}',
        b'{"op":"Refuse"}',
        b'{"op":"Running","resume_us":"x","announced":null}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        peer.decode_untrusted(frame)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
NAMES = st.sampled_from([type(message).__name__ for message, _ in KNOWN])


@given(st.dictionaries(st.sampled_from(["run", "reason", "socket", "leftovers"]), JSON), NAMES)
def test_a_stranger_s_json_is_a_message_or_a_protocol_error(
    fields: dict[str, object], name: str
) -> None:
    try:
        found = peer.decode_untrusted(json.dumps({**fields, "op": name}).encode())
    except ProtocolError:
        return
    assert type(found).__name__ == name


@given(st.binary(max_size=60))
def test_random_bytes_are_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        peer.decode_untrusted(frame)
