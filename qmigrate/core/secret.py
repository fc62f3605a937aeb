"""Values that must never be seen: they print as `<secret>` wherever they end up.

A `Secret` goes through f-strings, reprs of dataclasses, tracebacks, logs and `json.dumps` errors
without being told; only `reveal()` gives it away, so a search for that word finds every use.
"""

import hmac
from dataclasses import dataclass
from typing import AnyStr, Generic, NoReturn

SHOWN = "<secret>"


class Secret(Generic[AnyStr]):
    """A str or bytes whose text and repr are `<secret>`; equality takes constant time."""

    __slots__ = ("_value",)

    def __init__(self, value: AnyStr) -> None:
        self._value: AnyStr = value

    def reveal(self) -> AnyStr:
        """Return the value itself: for the one place that needs it, never to be kept."""
        return self._value

    def __repr__(self) -> str:
        return SHOWN

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = self._value, other._value
        return type(mine) is type(theirs) and hmac.compare_digest(_octets(mine), _octets(theirs))

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")  # nor copied to a file by accident


def _octets(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Identity:
    """What one side of a job's link proves itself with, and the only peer that it knows.

    Made by `controller.keys`, delivered over SSH, used by `transport.identity`. It stands here
    because messages carry it and messages import nothing that can open a socket.
    """

    certificate_pem: str
    key: Secret[str]  # PEM, PKCS#8
    peer_certificate_pem: str  # the pin: exactly this certificate, not what it has signed
