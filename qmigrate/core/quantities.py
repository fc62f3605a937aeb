"""Bytes and rates as people write and read them; units inside the program are bytes and bytes/s."""

import re
from fractions import Fraction

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_PREFIX = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?)?(bit|B)(?:/s)?", re.ASCII)


def human_bytes(size: float) -> str:
    """Return `size` bytes with three significant digits and a binary unit: ``1.5 GiB``."""
    for unit in _BINARY:
        # 999.5 and more would be printed as 1000, four digits: the next unit takes over there.
        if abs(size) < 999.5 or unit == _BINARY[-1]:
            break
        size /= 1024
    digits = 0 if unit == "B" or size == int(size) or abs(size) >= 99.5 else 1
    if digits and abs(size) < 9.95:
        digits = 2
    text = f"{size:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


def human_rate(rate_bps: float) -> str:
    """Return a rate in bytes/s as ``912 MiB/s``."""
    return human_bytes(rate_bps) + "/s"


def human_seconds(seconds: float) -> str:
    """Return a duration as ``12 ms``, ``3.4 s`` or ``2:05`` (minutes and seconds)."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def parse_rate(text: str) -> int:
    """Return bytes/s for ``800Mbit``, ``1.5 Gbit/s`` or ``60MiB/s``.

    Raises ValueError, with a sentence, for anything else: a bare number has no unit, and bits and
    bytes are mistaken for each other often enough to insist.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a rate: write it with a unit, as 800Mbit or 60MiB")
    number, prefix, unit = match.groups()
    bytes_per_s = Fraction(number) * _PREFIX[(prefix or "").lower()] / (8 if unit == "bit" else 1)
    if bytes_per_s < 1:
        raise ValueError(f"{text!r} is less than one byte a second")
    return int(bytes_per_s)
