"""The agent's first breath: without words serve a controller, else be what the first word says."""

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


def main(version: str = "0") -> None:
    """Serve the controller at the other end of stdio, or guard or do a job; exit at its end."""
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
