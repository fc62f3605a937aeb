"""QEMU's command line as data: taken apart without loss, read and changed by key.

::

    CommandLine.parse(argv)      program, Option, Option, …     .render() is argv again, to the byte
    Option("-device", "e1000,id=n0")            .opts           parsed when asked for
    Opts                         Item(key, value) in order      .get("id"), .put("id", "n1")

An option's value is one of three forms and `Opts` hides which: QemuOpts and keyval text
(``key=value,key=va,,lue``, the first key often implied), or JSON (``{"driver": "e1000"}``, its
members flattened to dotted keys, true and false to "on" and "off", as QEMU's keyval has them).
What is not changed keeps its spelling. Sources: QEMU 10.0 system/vl.c, util/qemu-option.c,
util/keyval.c. Paths and names are str as os.fsdecode gives them.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from qmigrate.core.errors import BlockedError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Options that take no value: asked of QEMU 10.0.2 (`-x` alone: no "requires an argument"), and
# those that older versions knew (7.2, the oldest that a supported distribution ships, and before).
FLAGS = _words(
    """
    S daemonize enable-kvm enable-sync-profile full-screen h help jitdump mem-prealloc
    no-fd-bootchk no-reboot no-shutdown no-user-config nodefaults nographic old-param
    only-migratable perfmap preconfig s semihosting snapshot usb version win2k-hack xen-attach
    xen-domid-restrict alt-grab async-teardown audio-help ctrl-grab curses enable-fips
    enable-hax hax no-acpi no-frame no-hpet
    no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection no-quit
    nodefconfig nouserconfig portrait sdl show-cursor singlestep tdf xen-create
    """
)

# Options that take one, from the same two sources; `id` is Proxmox's own.
VALUED = _words(
    """
    D L accel acpitable action add-fd append audio audiodev bios blockdev boot cdrom chardev
    compat cpu d debugcon device dfilter display drive dtb dump-vmstate echr fda fdb fsdev
    fw_cfg g gdb global hda hdb hdc hdd icount incoming initrd iscsi k kernel loadvm m machine M
    mem-path mon monitor msg mtdblock name net netdev nic numa object option-rom overcommit
    parallel pflash pidfile plugin prom-env qmp qmp-pretty qtest qtest-log readconfig rtc
    run-with sandbox sd seed semihosting-config serial set shim smbios smp spice tpmdev trace
    usbdevice uuid vga virtfs vnc watchdog-action xen-domid chroot runas tb-size soundhw
    watchdog writeconfig bt id
    """
)

# The key that a first word without "=" stands for (implied_opt_name in QEMU's option lists).
IMPLIED = {
    "accel": "accel",
    "add-fd": None,
    "audio": "driver",
    "audiodev": "driver",
    "blockdev": "driver",
    "boot": "order",
    "chardev": "backend",
    "cpu": "model",
    "device": "driver",
    "display": "type",
    "fsdev": "fsdriver",
    "fw_cfg": "name",
    "icount": "shift",
    "M": "type",
    "m": "size",
    "machine": "type",
    "mon": "chardev",
    "name": "guest",
    "net": "type",
    "netdev": "type",
    "nic": "type",
    "numa": "type",
    "object": "qom-type",
    "plugin": "file",
    "rtc": "base",
    "sandbox": "enable",
    "semihosting-config": "enable",
    "smp": "cpus",
    "tpmdev": "type",
    "trace": "enable",
    "virtfs": "fsdriver",
    "vnc": "vnc",
}


@dataclass(frozen=True, slots=True)
class Item:
    """A key and its value; `raw` is how the value's part of the option was spelt."""

    key: str  # dotted: "file.filename", "0.id"
    value: str
    raw: str  # text: the whole item with ",," kept; JSON: the scalar's JSON
    path: tuple[str | int, ...] = ()  # JSON only: an int is an array's index
    implied: bool = False  # text only: the key was not written


@dataclass(frozen=True, slots=True)
class Opts:
    """One option's keys and values, in order; of a key given twice the last counts."""

    items: tuple[Item, ...]
    json: bool = False

    def get(self, key: str) -> str | None:
        """Return the value that QEMU uses for `key`, unescaped; None if it is not given."""
        return next((item.value for item in reversed(self.items) if item.key == key), None)

    def every(self, key: str) -> tuple[str, ...]:
        """Return all values of a key that may repeat (`hostfwd`, `guestfwd`), in order."""
        return tuple(item.value for item in self.items if item.key == key)

    def under(self, prefix: str) -> "Opts":
        """Return what is below `prefix.`, with the prefix taken off the keys (to read only)."""
        start = prefix + "."
        return Opts(
            tuple(
                replace(item, key=item.key[len(start) :], path=item.path[1:])
                for item in self.items
                if item.key.startswith(start)
            ),
            self.json,
        )

    def __contains__(self, key: object) -> bool:
        return any(item.key == key for item in self.items)

    def put(self, key: str, value: str | int | bool) -> "Opts":
        """Return these with `key` set once, at the place where it counted, or appended.

        In JSON a str takes the type that the key had; for a new key its own type counts.
        """
        old = next((item for item in reversed(self.items) if item.key == key), None)
        new = _json_item(key, value, old) if self.json else _text_item(key, value, old)
        kept = [new if item is old else item for item in self.items]
        kept = [item for item in kept if item is new or item.key != key]
        return replace(self, items=tuple(kept if old else [*kept, new]))

    def without(self, *keys: str) -> "Opts":
        """Return these without `keys` and what is below them."""
        below = tuple(key + "." for key in keys)
        return replace(
            self,
            items=tuple(
                item
                for item in self.items
                if item.key not in keys and not item.key.startswith(below)
            ),
        )

    def render(self) -> str:
        """Return the option's value as QEMU reads it; text that was not changed, byte for byte."""
        if not self.json:
            return ",".join(item.raw for item in self.items)
        root: dict[Any, Any] = {}
        for item in self.items:
            here = root
            for step in item.path[:-1]:
                here = here.setdefault(step, {})
            here[item.path[-1]] = json.loads(item.raw)
        return json.dumps(_as_arrays(root), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Option:
    """One word of the command line that begins with a dash and the value that follows it.

    A bare disk image (QEMU's positional argument) has the empty spelling.
    """

    spelling: str  # "-device", "--device", ""
    value: str | None = None

    @property
    def flag(self) -> str:
        """The option's name without its dashes."""
        return self.spelling.removeprefix("-").removeprefix("-")

    @property
    def known(self) -> bool:
        """False: no QEMU that we know has it, so whether it takes a value was guessed."""
        return self.flag in FLAGS or self.flag in VALUED or not self.spelling

    @property
    def opts(self) -> Opts:
        """The value taken apart; raises `BlockedError` if it begins as JSON and is not."""
        if self.value is None:
            return Opts(())
        if self.value.startswith("{"):
            return parse_json(self.value)
        return parse_text(self.value, implied=IMPLIED.get(self.flag), signed=self.flag == "cpu")

    def put(self, key: str, value: str | int | bool) -> "Option":
        """Return the option with one key set; the spelling of the others is kept."""
        return replace(self, value=self.opts.put(key, value).render())

    def without(self, *keys: str) -> "Option":
        """Return the option without `keys`."""
        return replace(self, value=self.opts.without(*keys).render())

    def words(self) -> tuple[str, ...]:
        """Return its one or two words."""
        spelled = (self.spelling,) if self.spelling else ()
        return spelled if self.value is None else (*spelled, self.value)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A QEMU's program name and options, in order."""

    program: str
    options: tuple[Option, ...]

    @classmethod
    def parse(cls, argv: Iterable[str]) -> "CommandLine":
        """Take argv apart as QEMU's main loop does; never raises, whatever stands in it.

        Of an option that no known QEMU has, the next word is taken for its value if it does not
        begin with a dash.
        """
        words = list(argv)
        options: list[Option] = []
        at = 1
        while at < len(words):
            word = words[at]
            at += 1
            if not word.startswith("-"):
                options.append(Option("", word))
                continue
            flag = Option(word).flag
            more = at < len(words)
            if flag in VALUED or flag not in FLAGS:
                takes = more and (flag in VALUED or not words[at].startswith("-"))
                options.append(Option(word, words[at] if takes else None))
                at += takes
            else:
                options.append(Option(word))
        return cls(words[0] if words else "", tuple(options))

    def render(self) -> tuple[str, ...]:
        """Return argv."""
        return (self.program, *(word for option in self.options for word in option.words()))

    def every(self, *flags: str) -> tuple[Option, ...]:
        """Return all options of these names, in order."""
        return tuple(option for option in self.options if option.flag in flags)

    def last(self, *flags: str) -> Option | None:
        """Return the last option of these names: the one that counts where only one can."""
        return next((option for option in reversed(self.options) if option.flag in flags), None)


def escape(value: str) -> str:
    """Return `value` as it stands inside a comma separated list."""
    return value.replace(",", ",,")


def parse_text(text: str, *, implied: str | None = None, signed: bool = False) -> Opts:
    """Return the items of ``key=value,…``; a bare word is on, a bare "noword" is word=off.

    `signed` is for -cpu, where "noword" is a word like any other (util/qemu-option.c,
    get_opt_name_value; target/i386/cpu.c, x86_cpu_parse_featurestr).
    """
    return Opts(
        tuple(
            _read_item(raw, implied=implied if at == 0 else None, signed=signed)
            for at, raw in enumerate(_split_commas(text))
        )
    )


def _split_commas(text: str) -> list[str]:
    parts, start, at = [], 0, 0
    while (at := text.find(",", at)) >= 0:
        if text.startswith(",,", at):
            at += 2
            continue
        parts.append(text[start:at])
        start = at = at + 1
    return [*parts, text[start:]]


def _read_item(raw: str, *, implied: str | None, signed: bool) -> Item:
    key, sign, value = raw.partition("=")
    if sign and "," not in key:
        return Item(key, value.replace(",,", ","), raw)
    word = raw.replace(",,", ",")
    if implied:
        return Item(implied, word, raw, implied=True)
    if word.startswith("no") and not signed:
        return Item(word[2:], "off", raw)
    return Item(word, "on", raw)


def _text_item(key: str, value: str | int | bool, old: Item | None) -> Item:
    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
    if old and old.implied and "=" not in text:
        return replace(old, value=text, raw=escape(text))
    return Item(key, text, f"{key}={escape(text)}")


def parse_json(text: str) -> Opts:
    """Return the flattened members of a JSON object; raise `BlockedError` if it is none."""
    try:
        root = json.loads(_double_quoted(text))
    except (ValueError, RecursionError) as exc:
        raise BlockedError(
            "an option of the guest's command line begins as JSON and is not",
            last_words=str(exc),
        ) from exc
    return Opts(tuple(_flatten(root, ())), json=True)


_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^'\\]|\\.)*'")


def _double_quoted(text: str) -> str:
    """Turn the single quoted strings that QEMU's JSON accepts into JSON's own."""

    def turn(match: re.Match[str]) -> str:
        word = match.group()
        if word[0] == '"':
            return word
        return '"' + word[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'

    return _STRINGS.sub(turn, text)


def _flatten(node: Any, path: tuple[str | int, ...]) -> Iterable[Item]:
    if isinstance(node, dict) and node:
        for key, child in node.items():
            yield from _flatten(child, (*path, key))
    elif isinstance(node, list) and node:
        for index, child in enumerate(node):
            yield from _flatten(child, (*path, index))
    elif path:
        raw = json.dumps(node, ensure_ascii=False)
        yield Item(".".join(map(str, path)), _json_text(node, raw), raw, path)


def _json_text(node: Any, raw: str) -> str:
    if isinstance(node, bool):
        return "on" if node else "off"
    return node if isinstance(node, str) else raw


def _json_item(key: str, value: str | int | bool, old: Item | None) -> Item:
    typed: Any = value
    if old and isinstance(value, str):
        kind = type(json.loads(old.raw))
        if kind is bool and value in ("on", "off"):
            typed = value == "on"
        elif kind is int and value.lstrip("-").isdigit():
            typed = int(value)
    raw = json.dumps(typed, ensure_ascii=False)
    path = old.path if old else tuple(int(s) if s.isdigit() else s for s in key.split("."))
    return Item(key, _json_text(typed, raw), raw, path)


def _as_arrays(node: Any) -> Any:
    """Give back their form to arrays: objects whose keys are all indices."""
    if not isinstance(node, dict):
        return node
    if node and all(isinstance(key, int) for key in node):
        return [_as_arrays(node[key]) for key in sorted(node)]
    return {key: _as_arrays(child) for key, child in node.items()}
