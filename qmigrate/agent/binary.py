"""What a QEMU executable can do on this host: asked of itself, and of KVM by booting a guest.

``/dev/kvm`` may exist, open and still hang every guest (nested virtualisation that is not there),
so `core.tiny` is booted under it and has to show life. That answer is kept in
``/var/cache/qmigrate/kvm.json`` for this boot and this file; the others cost 25 ms and are asked
each time an agent starts.
"""

import contextlib
import json
import os
import re
import subprocess
from dataclasses import dataclass

import trio

from qmigrate.agent.places import secure_directory
from qmigrate.core.errors import HostError
from qmigrate.core.tiny import boot_sector, probe_argv, shows_life

ASK_DEADLINE_S = 10.0  # for 25 ms of work: the disk may sleep, the host may swap
KVM_DEADLINE_S = 3.0  # tiny shows life in 0.5 s even under TCG on a busy machine
END_DEADLINE_S = 1.0  # a killed QEMU that the kernel cannot end is left alone: KVM hangs it
CACHE = "/var/cache/qmigrate"
_READ_BYTES = 4096


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """A QEMU executable's own account of itself."""

    path: str
    version: str  # "10.0.2"
    machines: tuple[str, ...]  # types, aliases left out: they mean another thing elsewhere
    accelerators: tuple[str, ...]  # built in, and seen to work here


async def examine(path: str, *, probe_kvm: bool = True) -> QemuBinary:
    """Return what the QEMU at `path` is; its questions are put side by side.

    Without `probe_kvm` KVM is not among the accelerators, whether it works or not.

    Raises `HostError` if it does not run or does not answer as a QEMU does.
    """
    said: dict[str, str] = {}

    async def ask(*words: str) -> None:
        said[words[0]] = await _ask(path, *words)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "-version")
            nursery.start_soon(ask, "-machine", "help")
            nursery.start_soon(ask, "-accel", "help")
    except* HostError as group:
        problem = group.exceptions[0]
    else:
        built_in = set(said["-accel"].split())
        kvm = probe_kvm and "kvm" in built_in and await kvm_works(path)
        works = {"tcg", *(("kvm",) if kvm else ())}
        accelerators = tuple(sorted(built_in & works))
        machines = machine_types(said["-machine"])
        return QemuBinary(path, version_of(said["-version"], path), machines, accelerators)
    raise problem


async def _ask(path: str, *words: str) -> str:
    done = None
    with trio.move_on_after(ASK_DEADLINE_S):
        try:
            done = await trio.run_process(
                [path, *words], capture_stdout=True, capture_stderr=True, check=False
            )
        except OSError as exc:
            raise HostError(f"{path} cannot be run: {exc.strerror}") from exc
    if done is None:
        raise HostError(f"{path} {' '.join(words)} gave no answer in {ASK_DEADLINE_S:g} s")
    if done.returncode:
        words_of_its_own = done.stderr.decode(errors="replace").strip()
        raise HostError(f"{path} {' '.join(words)} failed", last_words=words_of_its_own or None)
    return done.stdout.decode(errors="replace")


def version_of(said: str, path: str) -> str:
    """Return the number in the first line of ``-version``; raise `HostError` if there is none."""
    found = re.search(r"version (\d+\.\d+(?:\.\d+)?)", said)
    if not found:
        raise HostError(f"{path} does not say its version: {said[:80]!r}")
    return found[1]


def machine_types(said: str) -> tuple[str, ...]:
    """Return the machine types in the text of ``-machine help``, without aliases and "none"."""
    rows = [line for line in said.splitlines()[1:] if line.strip() and "(alias of " not in line]
    return tuple(name for name in (row.split()[0] for row in rows) if name != "none")


async def kvm_works(path: str) -> bool:
    """Tell whether a guest was seen to run under KVM; takes `KVM_DEADLINE_S` the first time.

    A machine that was very busy then may have failed a good KVM: the next boot asks again.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot = (await trio.Path("/proc/sys/kernel/random/boot_id").read_text()).strip()
    facts = await trio.Path(path).stat()
    key = f"{boot} {path} {facts.st_dev} {facts.st_ino} {facts.st_mtime_ns} {facts.st_size}"
    known = _remembered(boot)
    if key in known:
        return known[key]
    works = await shows_life_under(path, "kvm")
    _remember({**known, key: works})
    return works


def _remembered(boot: str) -> dict[str, bool]:
    """Return this boot's answers; none from a cache that others could have written to."""
    try:
        answers = json.loads((secure_directory(CACHE) / "kvm.json").read_bytes())
        return {key: works is True for key, works in answers.items() if key.startswith(boot)}
    except (HostError, OSError, ValueError, AttributeError):
        return {}


def _remember(answers: dict[str, bool]) -> None:
    with contextlib.suppress(HostError, OSError):  # without a cache it is asked again
        target = secure_directory(CACHE) / "kvm.json"
        fresh = target.with_name(f".kvm-{os.getpid()}.json")
        fresh.write_text(json.dumps(answers))
        fresh.replace(target)


async def shows_life_under(path: str, accelerator: str) -> bool:
    """Boot tiny with the QEMU at `path`; tell whether its letters came in time.

    The guest is gone afterwards, also after a cancel, unless the kernel itself cannot end it.
    """
    image = os.memfd_create("qmigrate-tiny")
    try:
        os.write(image, boot_sector())
        argv = probe_argv(path, f"/proc/self/fd/{image}", accelerator)
        guest = await trio.lowlevel.open_process(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(image,),
        )
    except OSError:
        return False
    finally:
        os.close(image)
    assert guest.stdout  # noqa: S101 - a pipe was asked for
    try:
        serial = b""
        with trio.move_on_after(KVM_DEADLINE_S):
            while read := await guest.stdout.receive_some(_READ_BYTES):
                serial += read
                if shows_life(serial):
                    return True
        return False
    finally:
        guest.kill()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(END_DEADLINE_S):
                await guest.wait()
            await guest.stdout.aclose()
