"""What a lab has left on this machine, found without asking the lab that made it."""

import json
import os
import subprocess
from pathlib import Path

from qmigrate.lab.topologies import TOPOLOGIES

LINKS = {e.interface for t in TOPOLOGIES.values() for c in t.cables for e in c.ends}


def traces(name: str) -> set[str]:
    """Return processes, namespaces, mounts, links and files that lab `name` left here.

    A zombie whose parent is process 1 is no trace: it is dead, and process 1's to bury.
    """
    return {*_processes(name), *_mounts(name), *_links(), *_files(name)}


def _processes(name: str) -> set[str]:
    found = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        text = b"".join(_read(entry.path, file) for file in ("cmdline", "environ", "mountinfo"))
        if not _mentions(text.decode(errors="replace"), name):
            continue
        found.add(f"process {entry.name} {_read(entry.path, 'cmdline')!r}")
        for kind in ("net", "mnt", "pid", "uts"):
            try:
                here = Path(entry.path, "ns", kind).readlink()
            except OSError:
                continue
            if here != Path("/proc/self/ns", kind).readlink():
                found.add(f"namespace {here}")
    return found


def _mentions(text: str, name: str) -> bool:
    """Tell whether a word of `text` is the lab's: its name, and not the beginning of another's."""
    signs = (f"QMIGRATE_LAB={name}\0", f"'{name}'", f"/run/qmigrate-lab/{name}/")
    return any(sign in text for sign in (*signs, f"/run/qmigrate-lab/{name} "))


def _read(process: str, file: str) -> bytes:
    try:
        return Path(process, file).read_bytes()
    except OSError:
        return b""


def _mounts(name: str) -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {f"mount {line}" for line in lines if _mentions(line + " ", name)}


def _links() -> set[str]:
    shown = subprocess.run(["ip", "-j", "link"], check=True, capture_output=True, text=True)
    return {f"link {x['ifname']}" for x in json.loads(shown.stdout) if x["ifname"] in LINKS}


def _files(name: str) -> set[str]:
    tops = (Path("/run/qmigrate-lab", name), Path("/var/lib/qmigrate-lab", name))
    return {f"file {path}" for top in tops for path in (top, *top.rglob("*")) if path.exists()}
