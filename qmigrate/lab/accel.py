"""What this machine's QEMU can really do: which accelerator runs a guest, which versions may.

``/dev/kvm`` may exist, open and still hang every guest (nested virtualisation that is not there).
So the tiny guest is booted under KVM and must show life within a limit; the answer is kept for this
boot of the machine and this very QEMU.
"""

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal

from qmigrate.core.errors import UsageError
from qmigrate.core.tiny import boot_sector, probe_argv, shows_life
from qmigrate.lab.cache import cache_directory, write_atomically

Accelerator = Literal["kvm", "tcg"]

PROBE_LIMIT_S = 3.0  # tiny shows life in 0.5 s even under TCG on a busy machine
END_LIMIT_S = 1.0  # a killed QEMU that the kernel cannot end is left alone: KVM hangs it, no doubt
VERSION_LIMIT_S = 10.0  # `--version` on a machine that is out of memory or whose disk sleeps
LEAST_UNDER_TCG = (10, 0)


def working_accelerator(qemu: str = "qemu-system-x86_64", *, fresh: bool = False) -> Accelerator:
    """Return "kvm" if a guest was seen to run under it, else "tcg"; blocks `PROBE_LIMIT_S` at most.

    The first answer is kept; `fresh` asks again. A machine that was very busy at the first time may
    have failed a good KVM. Raises `UsageError` if there is no such QEMU.
    """
    executable = find_qemu(qemu)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    answers = cache_directory("probes") / "kvm.json"
    key = _key(executable)
    if not fresh and (known := _read_answers(answers).get(key)) is not None:
        return "kvm" if known else "tcg"
    works = shows_life_under(str(executable), "kvm")
    # Only this boot's answers are kept: others can never be right again.
    boot = key.split()[0]
    kept = {k: v for k, v in _read_answers(answers).items() if k.startswith(boot)}
    write_atomically(answers, json.dumps({**kept, key: works}).encode())
    return "kvm" if works else "tcg"


def shows_life_under(qemu: str, accelerator: str, *, limit_s: float = PROBE_LIMIT_S) -> bool:
    """Boot tiny under `accelerator`; tell whether its letters came within `limit_s` seconds."""
    with tempfile.NamedTemporaryFile(prefix="qmigrate-tiny-") as image:
        image.write(boot_sector())
        image.flush()
        process = subprocess.Popen(
            probe_argv(qemu, image.name, accelerator),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            return _letters_come(process, time.monotonic() + limit_s)
        finally:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_LIMIT_S)


def _letters_come(process: subprocess.Popen[bytes], deadline: float) -> bool:
    assert process.stdout
    serial = b""
    with process.stdout as pipe:
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([pipe], [], [], left)[0]:
                return False
            if not (read := os.read(pipe.fileno(), 4096)):
                return False  # it ended: refused by QEMU or by the kernel
            serial += read
            if shows_life(serial):
                return True
    return False


def find_qemu(qemu: str = "qemu-system-x86_64") -> Path:
    """Return the executable itself, links followed; raise `UsageError` if there is none."""
    found = shutil.which(qemu)
    if found is None:
        raise UsageError(
            f"no {qemu} on this machine",
            next_step="install QEMU >= 10.0 (Debian: qemu-system-x86)",
        )
    return Path(found).resolve()


def qemu_version(qemu: str = "qemu-system-x86_64") -> tuple[int, int, int]:
    """Return what ``--version`` says; raise `UsageError` if it does not say it."""
    executable = str(find_qemu(qemu))
    try:
        said = subprocess.run(
            [executable, "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=VERSION_LIMIT_S,
        ).stdout
    except (subprocess.SubprocessError, OSError) as exc:
        raise UsageError(f"{executable} --version failed: {exc}") from exc
    return parse_version(said, executable)


def parse_version(said: str, executable: str = "qemu") -> tuple[int, int, int]:
    """Return the numbers in the first line of ``--version``."""
    found = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", said)
    if not found:
        raise UsageError(f"{executable} does not tell its version: {said[:80]!r}")
    return int(found[1]), int(found[2]), int(found[3] or 0)


def require_qemu(version: tuple[int, int, int], accelerator: Accelerator = "tcg") -> None:
    """Raise `UsageError` if a guest under this QEMU and `accelerator` may not be migrated.

    QEMU 7.2 clears dirty bits under TCG without flushing the TLB that relies on them, so pages are
    lost in silence: 18 of 18 guests died. 10.0 has the flush
    (include/exec/ram_addr.h, `cpu_physical_memory_dirty_bits_cleared`).
    """
    if accelerator == "tcg" and version[:2] < LEAST_UNDER_TCG:
        raise UsageError(
            f"QEMU {'.'.join(map(str, version))} corrupts guests that it migrates under TCG "
            f"(it loses dirty pages), and KVM does not work here",
            next_step="install QEMU >= 10.0 (Debian 12: from bookworm-backports)",
        )


def _key(executable: Path) -> str:
    status = executable.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {executable} {status.st_mtime_ns} {status.st_size}"


def _read_answers(path: Path) -> dict[str, bool]:
    try:
        answers = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(answers, dict):
        return {}
    return {str(key): value for key, value in answers.items() if isinstance(value, bool)}
