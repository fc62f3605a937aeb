"""A second kernel for tests: Debian's user-mode Linux, booted in 2 s on this checkout.

It has what a small kernel lacks: bridges that filter VLANs, 8021q, ip_gre, netem, kernel TLS. Its
files are this machine's, virtual environment included, and what it writes to them is forgotten.

Tests write nothing special for it. Mark them, or a whole file, and they run inside::

    pytestmark = [pytest.mark.net, pytest.mark.uml]

    def test_kernel_gretap_…():      # root, namespaces, ip(8), the library, as anywhere
        with fresh_namespace() as alpha: …

All marked tests of a run share one boot (`uml_marked`); parameters, skips, captured output and
what an assertion said come out as if they had run here. Without the package they are skipped.
To try something by hand: ``python -m tests.support.uml [--memory MIB] COMMAND [ARGUMENT…]``.

What to know: one processor, starting a process takes 0.1 s, and 2 s with pyroute2 (so: namespaces
entered by threads, netlink in the process, few commands), kernel 6.1, clock ticks of 10 ms. Test
what happens, time nothing. A deadline that is right here may be short there.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KERNEL = "linux.uml"
MODULES = Path("/usr/lib/uml/modules")
MEMORY_MIB = 1536  # of this machine's only what is used
BOOT_DEADLINE_S = 60.0  # takes 2 s on a quiet machine
INIT = Path(__file__).with_name("uml-init")
CHECKOUT = Path(__file__).parents[2]
INSIDE_SIGN = "User Mode Linux"  # /proc/cpuinfo `vendor_id`
SHARED = Path("/run/out")  # what `Machine.out` is called inside


def is_inside() -> bool:
    """Tell whether this process runs on the user-mode kernel."""
    return INSIDE_SIGN in Path("/proc/cpuinfo").read_text()


def why_not() -> str | None:
    """Return what keeps this machine from booting it, in words; None if nothing does."""
    if os.geteuid() != 0:
        return "needs root: the tests inside are root as well"
    if shutil.which(KERNEL) is None or not MODULES.is_dir():
        return "no user-mode Linux here (Debian: user-mode-linux; scripts/setup --tests)"
    if shutil.which("modprobe", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
        return "no modprobe here (Debian: kmod; scripts/setup --tests)"
    return None


@dataclass(frozen=True)
class Ended:
    """How a command in there ended; without a status the kernel or its init died first."""

    status: int | None
    log: str  # what it printed
    console: str  # the kernel's words


def run(
    argv: Sequence[str],
    out: Path,
    *,
    deadline_s: float,
    memory_mib: int = MEMORY_MIB,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Boot, run `argv` in the checkout, power off; `out` is `SHARED` inside and may be written.

    After `deadline_s` the machine is killed; so it is if this process dies.
    """
    settings = {"PATH": os.environ["PATH"], "HOME": "/root", "LANG": "C.UTF-8", **(env or {})}
    words = ["env", "-i", *(f"{name}={value}" for name, value in settings.items()), *argv]
    script = f"cd {shlex.quote(str(CHECKOUT))} && exec {shlex.join(words)}\n"
    out.joinpath("command").write_text(script)
    for name in ("status", "log"):
        out.joinpath(name).unlink(missing_ok=True)
    # A PID namespace of its own: a process inside is a process of this machine's, and goes too.
    # The shell is its process 1, for a kernel that panics aborts itself, which no process 1 can.
    apart = [
        *("unshare", "--fork", "--pid", "--mount-proc", "--kill-child=SIGKILL"),
        *("sh", "-c", '"$@"; exit $?', "sh"),
    ]
    kernel = [
        *(KERNEL, f"mem={memory_mib}M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
        *(f"init={INIT}", f"OUT={out}", "con=null", "con0=null,fd:1", "con1=null", "loglevel=4"),
        *(f"uml_dir={out}/", "umid=uml"),
    ]
    try:
        done = subprocess.run(
            ["setpriv", "--pdeathsig=KILL", *apart, *kernel],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=deadline_s + BOOT_DEADLINE_S,
            check=False,
        )
        console = done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as exc:
        said = (exc.stdout or b"").decode(errors="replace")
        console = f"{said}\nnot at its end after {deadline_s + BOOT_DEADLINE_S:g} s: killed"
    status, log = out / "status", out / "log"
    return Ended(
        status=int(status.read_text()) if status.exists() else None,
        log=log.read_text(errors="replace") if log.exists() else "",
        console=console.replace("\r\n", "\n"),
    )


def main() -> int:
    """Run a command inside and show what it said."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.uml")
    parser.add_argument("--memory", type=int, default=MEMORY_MIB, metavar="MIB")
    parser.add_argument("--deadline", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="uml-") as out:
        ended = run(options.argv, Path(out), deadline_s=options.deadline, memory_mib=options.memory)
    print(ended.log, end="")
    if ended.status is None:
        print(ended.console, file=sys.stderr)
        return 255
    return ended.status


if __name__ == "__main__":
    sys.exit(main())
