"""Become the guest's twin: take on its user, limits and place, then exec QEMU.

Run as a script by the agent (`python3 -I -S launch.py DESCRIPTOR`), so that nothing but exec stands
between here and QEMU: the pid that the agent started is QEMU's own. Standard library only, and
importable by nobody. The descriptor holds one JSON object, the fields of `Launch`.
"""

import json
import os
import resource
import signal
import sys

UNLIMITED = -1


def main() -> None:
    """Read what to become, become it; what fails is said on stderr, with exit status 126."""
    with os.fdopen(int(sys.argv[1])) as source:
        launch = json.load(source)
    try:
        os.setsid()
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python; exec would keep it so
            signal.signal(ignored, signal.SIG_DFL)
        os.umask(launch["umask"])
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:  # noqa: PTH123
            score.write(str(launch["oom_score_adj"]))
        for name, soft, hard in launch["limits"]:
            bounds = [resource.RLIM_INFINITY if v == UNLIMITED else v for v in (soft, hard)]
            number = getattr(resource, name, None)  # RLIMIT_LOCKS: without effect since Linux 2.4
            if number is not None:
                resource.setrlimit(number, (bounds[0], bounds[1]))
        for descriptor in launch["keep"]:
            os.set_inheritable(descriptor, True)
        os.setgroups(launch["groups"])
        os.setresgid(launch["gid"], launch["gid"], launch["gid"])
        os.setresuid(launch["uid"], launch["uid"], launch["uid"])
        os.chdir(launch["cwd"])
        if not os.read(launch["gate"], 1):  # whoever started us died before it had written us down
            sys.exit(126)
        os.close(launch["gate"])
        os.execve(launch["executable"], launch["argv"], launch["environment"])  # noqa: S606
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"the twin cannot be started: {exc}\n")
        sys.exit(126)


if __name__ == "__main__":
    main()
