"""`netsetup probe`: help without weight, and a verdict's exit code."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from netsetup.__main__ import main
from tests.support.probe_talk import Speaker, Wire, lost, passes, talk

HEAVY = {"trio", "pyroute2", "asyncio", "cattrs"}


@pytest.mark.parametrize("command", [["probe"], ["probe", "ask"], ["tunnel"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys\n"
        "from netsetup.__main__ import main\n"
        "try:\n    main([*sys.argv[1:], '--help'])\n"
        f"finally:\n    print(sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("forth", "complete", "code", "word"),
    [
        (passes, True, 0, "adjacent"),
        (lost, True, 3, "not adjacent"),
        (lost, False, 7, "unknown"),
    ],
)
def test_a_verdict_from_two_files_is_an_exit_code(
    forth: Wire,
    complete: bool,
    code: int,
    word: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sides = {"alpha": Speaker(1, complete=complete), "beta": Speaker(2)}
    talk(*sides.values(), forth)
    names = []
    for name, side in sides.items():
        path = tmp_path / f"{name}.json"
        report = {"schema": "netsetup.probe/1", "report": asdict(side.report())}
        path.write_text(json.dumps(report))
        names.append(str(path))
    assert main(["probe", "judge", *names]) == code
    out = capsys.readouterr().out
    assert out.startswith(f"{word}: ")
    assert "br0" in out
    assert main(["probe", "judge", *names, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["adjacency"] == word.replace(" ", "-")
    assert told["joined"] is True  # from beta frames pass in any case
