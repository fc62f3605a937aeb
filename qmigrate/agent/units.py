"""The systemd unit that a guest's QEMU is in: stopped instead of QEMU, and seen to stay down."""

import trio

from qmigrate.agent.places import runs_systemd
from qmigrate.core.errors import HostError

STOP_DEADLINE_S = 90.0  # systemd's own TimeoutStopSec before it kills
ASK_DEADLINE_S = 10.0  # for an answer over D-Bus
_ENABLED = ("enabled", "enabled-runtime", "linked", "linked-runtime", "generated")


async def stop_unit(unit: str) -> None:
    """Stop the unit; raise `HostError` if systemd refuses or the unit is up again afterwards."""
    if not runs_systemd():
        raise HostError(f"no systemd runs here that could stop {unit}")
    status, words = await _systemctl("stop", unit, deadline_s=STOP_DEADLINE_S)
    if status:
        raise HostError(f"systemctl stop {unit} failed", last_words=words or None)
    _, state = await _systemctl("is-active", unit)
    if state not in ("inactive", "failed"):
        raise HostError(
            f"{unit} was stopped and is {state}: it may have started a second copy of the guest",
            last_words=state,
            next_step=f"systemctl stop {unit}, and look for a QEMU that it has started",
        )


async def enabled_at_boot(unit: str) -> str | None:
    """Return the unit's name and how it is enabled, if it would start at the next boot."""
    if not runs_systemd():
        return None
    _, state = await _systemctl("is-enabled", unit)
    return f"{unit} ({state})" if state in _ENABLED else None


async def _systemctl(
    verb: str, unit: str, *, deadline_s: float = ASK_DEADLINE_S
) -> tuple[int, str]:
    with trio.move_on_after(deadline_s):
        try:
            done = await trio.run_process(
                ["systemctl", verb, "--", unit],
                check=False,
                capture_stdout=True,
                capture_stderr=True,
            )
        except OSError as exc:
            raise HostError(f"systemctl cannot be run: {exc.strerror}") from exc
        words = (done.stdout or done.stderr).decode(errors="replace").strip()
        return done.returncode, words
    raise HostError(f"systemctl {verb} {unit} did not end within {deadline_s:g} s")
