"""The language between controller and agent: strict, and no longer than it may be."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmigrate.agent.protocol import (
    Answer,
    Call,
    Cancel,
    Failure,
    FromAgent,
    FromController,
    Hello,
    LineSplitter,
    Note,
    decode_untrusted,
    encode,
    parse_json_untrusted,
    structure_untrusted,
)
from qmigrate.agent.requests import (
    REPLIES,
    Echo,
    GetHostFacts,
    Request,
)
from qmigrate.core.errors import Problem, ProtocolError

HELLO = Hello(1, "0.1.0", "alpha", "b-o-o-t", "3.11.2", 0, 42)

KNOWN_LINES: list[tuple[Any, Any, bytes]] = [
    (
        FromController,
        Call(1, Echo("hi")),
        b'{"id":1,"request":{"text":"hi","notes":0,"op":"Echo"},"op":"Call"}\n',
    ),
    (FromController, Cancel(7), b'{"id":7,"op":"Cancel"}\n'),
    (FromAgent, Answer(1, {"text": "hi"}), b'{"id":1,"value":{"text":"hi"},"op":"Answer"}\n'),
    (FromAgent, Note(1, [1, None]), b'{"id":1,"note":[1,null],"op":"Note"}\n'),
]


@pytest.mark.parametrize(("union", "message", "line"), KNOWN_LINES)
def test_a_message_is_this_very_line_and_comes_back(union: Any, message: Any, line: bytes) -> None:
    assert encode(message) == line
    assert decode_untrusted(line, union) == message


texts = st.text(max_size=20)
messages = st.one_of(
    st.builds(Call, st.integers(), st.builds(Echo, texts, st.integers(0, 9))),
    st.builds(Call, st.integers(), st.builds(GetHostFacts, users=st.lists(texts).map(tuple))),
    st.builds(Cancel, st.integers()),
    st.builds(Failure, st.integers(), st.builds(Problem, texts, texts, st.none() | texts)),
    st.just(HELLO),
)


@given(messages)
def test_every_message_survives_the_wire(message: Any) -> None:
    union: Any = FromController if isinstance(message, Call | Cancel) else FromAgent
    assert decode_untrusted(encode(message), union) == message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"op":"Cancel","id":NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a"),
        (b"{}", "not a"),
        (b'{"op":"Nonsense"}', "not a"),
        (b'{"op":"Cancel","id":"7"}', "expected int, got str"),
        (b'{"op":"Cancel","id":true}', "expected int, got bool"),
        (b'{"op":"Cancel","id":7,"more":1}', "extra fields found (more)"),
        (b'{"op":"Call","id":7,"request":{"op":"Echo"}}', "required field missing"),
        (b'{"op":"Call","id":7,"request":{"op":"GetHostFacts","users":"root"}}', "expected a list"),
    ],
)
def test_what_is_no_message_is_a_protocol_error_that_says_why(line: bytes, said: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_untrusted(line, FromController)
    assert said in caught.value.problem.what


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(line: bytes) -> None:
    with suppress(ProtocolError):
        decode_untrusted(line, FromAgent)


def test_a_line_beyond_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ProtocolError, match="more than the 10 allowed"):
        parse_json_untrusted(b"1" * 11, limit=10)


@given(st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")), max_size=9), st.data())
def test_lines_do_not_depend_on_how_the_bytes_arrive(lines: list[bytes], data: Any) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"rest"
    splitter, found, at = LineSplitter(), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, 12))
        found += splitter.feed_untrusted(stream[at : at + step])
        at += step
    assert found == lines
    assert splitter.rest == b"rest"


@pytest.mark.parametrize("chunk", [b"x" * 11, b"x" * 11 + b"\n", b"ok\n" + b"x" * 11])
def test_a_peer_cannot_make_us_hold_more_than_one_line(chunk: bytes) -> None:
    splitter = LineSplitter(limit=10)
    with pytest.raises(ProtocolError, match="more than the 10 bytes"):
        splitter.feed_untrusted(chunk)


def test_every_request_has_a_reply() -> None:
    assert set(Request.__args__) == set(REPLIES)


def test_a_fault_inside_is_named_by_its_path() -> None:
    with pytest.raises(ProtocolError, match=r"expected int, got str 'x' @ \$\.uid"):
        structure_untrusted({**_plain(HELLO), "uid": "x"}, Hello)


def _plain(hello: Hello) -> dict[str, Any]:
    value: dict[str, Any] = parse_json_untrusted(encode(hello))
    del value["op"]
    return value
