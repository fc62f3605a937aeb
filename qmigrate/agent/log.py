"""A job's log, which is stderr: whether its words are kept decides nothing.

A disk that is full, or gone, takes the words away and not the agent: an exception out of a word
said between GO and RUN would leave the guest running nowhere.
"""

import contextlib
import os

_STDERR = 2


def write(text: str) -> None:
    """Append `text` to the log, if the log takes it; never raises."""
    with contextlib.suppress(OSError):
        os.write(_STDERR, text.encode(errors="backslashreplace"))
