"""A command line that anybody may write names a file that root then reads."""

import os
from pathlib import Path

import pytest

from qmigrate.agent import guests, process


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Return the flags of every os.open; process 1 lives in `tmp_path`."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "root").symlink_to("/")
    monkeypatch.setattr(process, "PROC", tmp_path)
    flags: list[int] = []
    real = os.open

    def remember(path: str, how: int) -> int:
        flags.append(how)
        return real(path, how)

    monkeypatch.setattr("os.open", remember)
    return flags


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "link to a device"])
def test_what_is_no_file_is_looked_at_and_never_opened(
    opened: list[int], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "g.cfg"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/null")
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to("/dev/null")
    with pytest.raises(OSError, match="no regular file"):
        guests._read_config(1, str(path))
    assert opened
    assert all(flags & os.O_PATH for flags in opened)  # else /dev/watchdog would count by now


def test_a_file_is_read(opened: list[int], tmp_path: Path) -> None:
    (tmp_path / "g.cfg").write_text("[machine]\n")
    assert guests._read_config(1, f"{tmp_path}/g.cfg") == "[machine]\n"
    assert len(opened) == 2
