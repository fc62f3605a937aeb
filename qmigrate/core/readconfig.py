"""QEMU's `-readconfig` files as the options that they stand for; the text comes from the caller."""

import re

from qmigrate.core.argv import Option, escape
from qmigrate.core.errors import BlockedError

# `-readconfig` sections whose name is not that of the option.
SECTIONS = {"smp-opts": "smp", "memory": "m", "boot-opts": "boot"}

_NAMED = re.compile(r'\[(\S{1,63})\s+"([^"]{1,63})"\]')
_PLAIN = re.compile(r"\[([^\]]{1,63})\]")
_PAIR = re.compile(r'\s*(\S{1,63})\s*=\s*"([^"]*)"')


def parse_config(text: str) -> tuple[Option, ...]:
    """Return the options that a `-readconfig` file stands for, in the file's order.

    Raises `BlockedError` on what QEMU itself would not have read (util/qemu-config.c).
    """
    sections: list[tuple[str, list[str]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            if named := _NAMED.match(line):
                sections.append((named[1], [f"id={escape(named[2])}"]))
                continue
            if plain := _PLAIN.match(line):
                sections.append((plain[1], []))
                continue
        if (pair := _PAIR.match(line)) and sections:
            sections[-1][1].append(f"{pair[1]}={escape(pair[2])}")
            continue
        raise BlockedError(f"line {number} of the guest's -readconfig file cannot be understood")
    return tuple(
        Option("-" + SECTIONS.get(name, name), ",".join(items)) for name, items in sections
    )
