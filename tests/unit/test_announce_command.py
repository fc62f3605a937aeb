"""The command's words, exit codes and cost of starting."""

import json
import subprocess
import sys

import pytest

from netsetup.__main__ import main

ANNOUNCE = ["announce", "--interface", "br0", "--mac", "52:54:00:12:34:56"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--mac", "52:54:00"], "not a MAC address"),
        (["--vlan", "4095"], "VLAN 4095"),
        (["--schedule", "150,0"], "rising"),
        (["--address", "ff02::1"], "ff02::1"),
        (["--interface", "a/b"], "interface's name"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_exit_code_2(
    more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ANNOUNCE, *more]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize("more", [["--address", "nonsense"], ["--schedule", "soon"], ["--nope"]])
def test_what_cannot_be_parsed_is_exit_code_2(more: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*ANNOUNCE, *more])
    assert caught.value.code == 2


def test_a_dry_run_shows_the_frames_and_their_times_as_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--address", "192.0.2.9", "--schedule", "0,70", "--dry-run", "--json"]
    assert main([*ANNOUNCE, *more]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "netsetup.announce-plan/1"
    assert [(f["at_ms"], f["kind"], f["address"]) for f in shown["frames"]] == [
        (0, "rarp", None),
        (0, "garp", "192.0.2.9"),
        (70, "rarp", None),
        (70, "garp", "192.0.2.9"),
    ]
    assert bytes.fromhex(shown["frames"][0]["hex"])[12:14].hex() == "8035"


@pytest.mark.parametrize("command", [[], ["announce"], ["show"]])
def test_help_has_examples_and_imports_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys\n"
        "from netsetup.__main__ import main\n"
        "try:\n    main([*sys.argv[1:], '--help'])\n"
        "finally:\n    print(sorted({'trio', 'pyroute2', 'asyncio'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")
    assert not command or "examples:" in done.stdout
