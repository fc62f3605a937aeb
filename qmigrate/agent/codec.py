"""JSON's plain objects to frozen dataclasses and back, strictly: no coercion, no unknown keys.

cattrs by itself takes 7 for "7" and a string for a list of its letters. Whatever does not fit is a
`ProtocolError` that names every fault. Pure: messages, journal and inventory go through it.
"""

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar, get_args, get_origin

import cattrs
from cattrs.cols import homogenous_tuple_structure_factory
from cattrs.preconf.json import make_converter
from cattrs.v import format_exception

from qmigrate.core.errors import ProtocolError
from qmigrate.core.secret import Secret

LINE_LIMIT = 4 * 1024 * 1024  # bytes; the largest honest line is a big guest's GuestDetail

T = TypeVar("T")


def _exactly(cls: type) -> Callable[[Any, Any], Any]:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is cls or (cls is float and type(value) is int):
            return value
        raise TypeError(f"expected {cls.__name__}, got {type(value).__name__} {value!r:.40}")

    return hook


def make_codec() -> cattrs.Converter:
    """Return a strict converter for frozen dataclasses; cattrs' own default coerces silently."""
    codec = make_converter(forbid_extra_keys=True)
    for kind in (str, int, float, bool):
        codec.register_structure_hook(kind, _exactly(kind))
    codec.register_structure_hook(StrEnum, _member)  # else the hook of str takes its subclasses
    codec.register_structure_hook_factory(_is_tuple, _tuple_hook)
    codec.register_structure_hook_func(_is_secret, _structure_secret)
    codec.register_unstructure_hook_func(_is_secret, Secret.reveal)
    return codec


def _member(value: Any, cls: type[StrEnum]) -> StrEnum:
    if type(value) is not str and not isinstance(value, cls):
        raise TypeError(f"expected a word, got {type(value).__name__} {value!r:.40}")
    return cls(value)


def _is_secret(cls: Any) -> bool:
    return cls is Secret or get_origin(cls) is Secret


def _structure_secret(value: Any, _: Any) -> Secret[str]:
    """Take a plain string; what came instead is not quoted, as it might be one."""
    if type(value) is not str:
        raise TypeError(f"expected a secret string, got {type(value).__name__}")
    return Secret(value)


def _is_tuple(cls: Any) -> bool:
    origin: object = get_origin(cls)
    return origin is tuple


def _tuple_hook(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """Refuse what merely can be iterated: a string would become a tuple of its letters."""
    kinds = get_args(cls)
    homogenous = len(kinds) == 2 and kinds[1] is Ellipsis
    inner = homogenous_tuple_structure_factory(cls, converter) if homogenous else None

    def hook(value: Any, _: Any) -> Any:
        if type(value) not in (list, tuple):  # tuple: before json has turned it into a list
            raise TypeError(f"expected a list, got {type(value).__name__} {value!r:.40}")
        if inner:
            return inner(value, cls)
        if len(value) != len(kinds):
            raise TypeError(f"expected {len(kinds)} items, got {len(value)}")
        return tuple(converter.structure(v, k) for v, k in zip(value, kinds, strict=True))

    return hook


codec = make_codec()


def _sentence(exc: BaseException, cls: type | None) -> str:
    """Return our own words where we refused, else cattrs' ("required field missing")."""
    return str(exc) if isinstance(exc, TypeError) else format_exception(exc, cls)


def structure_untrusted(value: Any, cls: type[T]) -> T:
    """Return JSON's plain `value` as `cls`; raise `ProtocolError` that names every fault."""
    try:
        return codec.structure(value, cls)
    except Exception as exc:
        faults = "; ".join(cattrs.transform_error(exc, format_exception=_sentence))
        name = getattr(cls, "__name__", "message")
        raise ProtocolError(f"not a {name}: {faults or exc!r}") from exc


def parse_json_untrusted(line: bytes, *, limit: int = LINE_LIMIT) -> Any:
    """Return the JSON value in `line`; raise `ProtocolError` if there is none."""
    if len(line) > limit:
        raise ProtocolError(f"a line of {len(line)} bytes, more than the {limit} allowed")
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"not JSON: {line[:80]!r}") from exc


class LineSplitter:
    """Turns chunks of bytes into lines; holds at most one line of `limit` bytes."""

    def __init__(self, *, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed_untrusted(self, chunk: bytes | bytearray) -> list[bytes]:
        """Return the lines that `chunk` ends, without newlines; `ProtocolError` if too long."""
        start = len(self._rest)
        self._rest += chunk
        end = self._rest.rfind(b"\n", start)
        lines = [] if end < 0 else bytes(self._rest[:end]).split(b"\n")
        del self._rest[: end + 1]
        if max(map(len, lines), default=0) > self._limit or len(self._rest) > self._limit:
            raise ProtocolError(f"a line of more than the {self._limit} bytes allowed")
        return lines

    @property
    def rest(self) -> bytes:
        """What came after the last newline."""
        return bytes(self._rest)


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
