"""The agent's first breath: keep stdout for the protocol, then serve until stdin ends."""

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
    """Serve the controller at the other end of stdio; exit when it hangs up."""
    incoming, outgoing = _claim_stdio()
    import trio

    from qmigrate.agent.server import serve_stdio

    sys.exit(trio.run(serve_stdio, version, incoming, outgoing))


if __name__ == "__main__":
    main()
