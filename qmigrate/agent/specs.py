"""A job's spec, kept twice: with its key in a memfd, without it beside the journal.

The memfd is what guardian and agents inherit, and goes with them. ``spec.json`` outlives them, so
that a job whose processes have all died can be gone on with, under new keys. A key never sees a
file system.

The memfd holds a spec a line, and the last line that is whole counts: new keys are appended, and an
agent killed in the middle of that leaves the ones before in force.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

from qmigrate.agent.protocol import codec, parse_json_untrusted, structure_untrusted
from qmigrate.core.errors import HostError, ProtocolError
from qmigrate.core.job import JobSpec
from qmigrate.core.secret import Identity, Secret

NOBODY = Identity("", Secret(""), "")  # stands in the file where the identity was


def make_told(spec: JobSpec) -> int:
    """Return a memfd with `spec`, to be inherited and then closed here."""
    told = os.memfd_create("qmigrate-job", os.MFD_CLOEXEC)
    add_told(told, spec)
    return told


def add_told(told: int, spec: JobSpec) -> None:
    """Let `spec` be what agents are told from now on."""
    line = json.dumps(codec.unstructure(spec)).encode() + b"\n"
    end = os.fstat(told).st_size
    if end and os.pread(told, 1, end - 1) != b"\n":  # cut short: nobody will read what stands there
        line = b"\n" + line
    os.pwrite(told, line, end)


def read_told(told: int) -> JobSpec:
    """Return the spec in force; raise `ProtocolError` if there is none."""
    lines = os.pread(told, os.fstat(told).st_size, 0).split(b"\n")[:-1]  # the last is not whole
    for line in reversed(lines):
        try:
            return structure_untrusted(parse_json_untrusted(line), JobSpec)
        except ProtocolError:
            continue
    raise ProtocolError("an agent was started without a spec")


def keep_spec(path: Path, spec: JobSpec) -> None:
    """Write `spec` without its identity to `path`, whole or not at all; raise `HostError`."""
    text = json.dumps(codec.unstructure(replace(spec, identity=NOBODY)))
    fresh = path.with_name("." + path.name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(fresh, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(path)
    except OSError as exc:
        raise HostError(
            f"what the job is cannot be kept at {path}: {exc.strerror}",
            next_step="make room in /run, then try again",
        ) from exc


def read_spec(path: Path) -> JobSpec | None:
    """Return the spec kept at `path`, with nobody's identity; None if there is none to be read."""
    try:
        return structure_untrusted(parse_json_untrusted(path.read_bytes()), JobSpec)
    except (OSError, ProtocolError):
        return None
