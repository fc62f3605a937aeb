"""The agent's first breath: without words serve a controller, else be what the first word says."""

import fcntl
import os
import sys


def _claim_stdio() -> tuple[int, int]:
    """Return private descriptors of stdin and stdout; what anyone prints goes to stderr.

    A stray `print`, or a child that inherits descriptor 1, would otherwise garble the protocol.
    """
    incoming, outgoing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return incoming, outgoing


def _hold_version() -> None:
    """Lock the pushed directory that we run from until we end, so that nobody cleans it away.

    Stage 0 holds it for the agent that it becomes; a guardian and its workers hold their own, for
    they import late and outlive that agent (bootstrap.clean).
    """
    directory = os.path.dirname(sys.modules["__main__"].__file__ or "")  # noqa: PTH120 - 10 ms
    try:
        fd = os.open(directory + "/.ok", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # not pushed: started from a checkout or an installed package
    fcntl.flock(fd, fcntl.LOCK_SH)  # the descriptor stays open on purpose


def main(version: str = "0") -> None:
    """Serve the controller at the other end of stdio, or guard or do a job; exit at its end."""
    _hold_version()
    match sys.argv[1:]:
        case ["guardian", *words]:
            from qmigrate.agent import guardian

            sys.exit(guardian.main(words))
        case ["worker", *words]:
            from qmigrate.agent import worker

            sys.exit(worker.main(words))
        case _:
            _serve(version)


def _serve(version: str) -> None:
    incoming, outgoing = _claim_stdio()
    import trio

    from qmigrate.agent.server import serve_stdio

    sys.exit(trio.run(serve_stdio, version, incoming, outgoing))


if __name__ == "__main__":
    main()
