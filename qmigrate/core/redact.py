"""A guest's command line as it may be shown: passwords, keys and credentials are `<secret>`.

What QEMU takes secrets in, by its own documentation: ``-object secret,data=``, ``-spice
password=``, ``-iscsi password=``, URLs with a login, ``rbd:…:key=``, cookies; and what guests are
told: ``-fw_cfg string=`` (Ignition), ``-smbios value=io.systemd.credential…``, words of
``-append``. A key that ends in "-secret" holds the id of a secret object and is shown.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import replace

from qmigrate.core.argv import CommandLine, Item, Option, Opts, parse_json
from qmigrate.core.errors import BlockedError
from qmigrate.core.secret import SHOWN

_KEY = re.compile(r"(^|[._-])(password|passwd|passphrase|cookie|token|psk)$")
_LOGIN = re.compile(r"(?P<before>\b[a-z][\w+.-]*://[^\s/:@%]*[:%])[^\s/@]+@", re.IGNORECASE)
_RBD_KEY = re.compile(r"(?P<before>:key=)(?:[^:\\]|\\.)+")
_CREDENTIAL = re.compile(r"(?P<before>io\.systemd\.credential[\w.]*:[^=]*=).*", re.DOTALL)
_WORD = re.compile(
    r"(?P<before>[\w.-]*(?:password|passwd|passphrase|secret|token|psk|key|credential)[\w.:-]*=)"
    r"(?:\"[^\"]*\"|\S+)",
    re.IGNORECASE,
)
# Options whose whole value is a file's name: no keys, no ",,".
_IMAGES = ("", "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "pflash", "mtdblock", "sd")


def redact(argv: Iterable[str]) -> tuple[str, ...]:
    """Return argv with every secret that we know how to find replaced; never raises."""
    line = CommandLine.parse(argv)
    return replace(line, options=tuple(map(redact_option, line.options))).render()


def redact_option(option: Option) -> Option:
    """Return the option fit to be shown; one without a secret keeps its spelling to the byte."""
    value = option.value
    if value is None:
        return option
    if option.flag == "append":
        return replace(option, value=_WORD.sub(_hide, value))
    if option.flag in _IMAGES:
        return replace(option, value=_hide_in(value))
    try:
        opts = option.opts
    except BlockedError:
        return replace(option, value=SHOWN)  # half JSON: nobody can tell what stands in it
    shown = _redact_opts(opts, option.flag)
    return option if shown == opts else replace(option, value=shown.render())


def _redact_opts(opts: Opts, flag: str) -> Opts:
    holds = {"data"} if (opts.get("qom-type") or "").startswith("secret") else set()
    if flag == "fw_cfg":
        holds = {"string"}
    return replace(opts, items=tuple(_redact_item(i, holds, json=opts.json) for i in opts.items))


def _redact_item(item: Item, holds: set[str], *, json: bool) -> Item:
    value = item.value
    if item.key in holds or (_KEY.search(item.key.lower()) and value not in ("on", "off")):
        value = SHOWN
    elif value.startswith("json:"):
        value = _redact_pseudo_name(value)
    else:
        value = _hide_in(value)
    if value == item.value:
        return item
    return replace(item, value=value, raw=_raw(item, value, json=json))


def _raw(item: Item, value: str, *, json: bool) -> str:
    if json:
        return _quote(value)
    text = value.replace(",", ",,")
    return text if item.implied else f"{item.key}={text}"


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _redact_pseudo_name(value: str) -> str:
    """`json:{…}` in the place of a file name is a whole -blockdev."""
    try:
        opts = parse_json(value.removeprefix("json:"))
    except BlockedError:
        return SHOWN
    shown = _redact_opts(opts, "blockdev")
    return value if shown == opts else "json:" + shown.render()


def _hide_in(value: str) -> str:
    for pattern in (_LOGIN, _RBD_KEY, _CREDENTIAL):
        value = pattern.sub(_hide, value)
    return value


def _hide(match: re.Match[str]) -> str:
    return match["before"] + SHOWN + ("@" if match.group().endswith("@") else "")
