"""The house keeps its own rules: the linters are tests, and so is what no linter knows."""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmigrate.cli.main import COMMANDS
from qmigrate.cli.parser import Command, build
from tests.support import pages

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FILE_LINES = 400
SCRIPT_LINES = 30

# A table or a list that is read as one thing says why it is not two files; a debt says so.
LONG_ON_PURPOSE: dict[str, str] = {}  # name: why

CHECKS = {
    "ruff check": ("ruff", "check", "--no-cache"),
    "ruff format": ("ruff", "format", "--check", "--no-cache"),
    "mypy": ("mypy",),
    # The program: `python -m importlinter.cli` exits 0 whatever it finds.
    "import contracts": ("lint-imports", "--no-cache"),
}


def tracked(*patterns: str) -> list[Path]:
    """Return what git would hold, new files too."""
    # A checkout that belongs to another user (a bind mount, a container) is still ours to read.
    git = ("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others")
    done = subprocess.run(
        [*git, "--exclude-standard", "--", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    found = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in found if path.is_file()]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("check", CHECKS)
def test_the_linters_have_nothing_to_say(check: str) -> None:
    program, *words = CHECKS[check]
    done = subprocess.run(
        [BIN / program, *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_no_file_grows_into_a_god_unless_it_says_why() -> None:
    sources = tracked("qmigrate/*.py", "netsetup/*.py")
    assert len(sources) > 50
    lines = {named(path): path.read_text().count("\n") for path in sources}
    too_long = {name: n for name, n in lines.items() if n > FILE_LINES}
    assert too_long.keys() <= LONG_ON_PURPOSE.keys(), too_long


def test_the_leave_to_be_long_ends_when_it_is_not_needed() -> None:
    for name in LONG_ON_PURPOSE:
        assert (ROOT / name).read_text().count("\n") > FILE_LINES, name


# Put together from pieces, or this file would find itself.
OF_ONE_MACHINE = re.compile(
    "|".join(
        [
            r"(?<![\w.])/(?:work|root|home/(?!u/)\w+|Users/\w+)/",
            r"pypi\." + "org",
            r"files\.python" + "hosted",
            r"deb\.debian\." + "org",
            r"://[^\s/@]+:[^\s/@]+@(?!h(?:ost)?/)",  # a password; tests of redaction use h and host
        ]
    )
)


def test_nothing_tracked_knows_a_registry_or_somebodys_machine() -> None:
    seen = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        seen += [f"{named(path)}: {found[0]}" for found in OF_ONE_MACHINE.finditer(text)]
    assert seen == []


def requirements() -> list[str]:
    text = (ROOT / "requirements.txt").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def test_every_requirement_is_pinned_with_hashes_and_without_an_address() -> None:
    assert len(requirements()) > 20
    for line in requirements():
        pattern = r"[a-z0-9.-]+==\S+( ;[^-]*)?( +--hash=sha256:[0-9a-f]{64})+ *"
        assert re.fullmatch(pattern, line), line


def test_the_pins_hold_everything_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        re.split(r"[><=]", each)[0].replace(".", "-").lower()
        for each in project["dependencies"] + project["optional-dependencies"]["dev"]
    }
    assert wanted <= {line.partition("==")[0].replace(".", "-") for line in requirements()}


@pytest.mark.parametrize("package", ["qmigrate", "qmigrate/agent"])
def test_the_packages_that_everything_imports_cost_nothing(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_bytes() == b""


def test_scripts_only_call_the_package() -> None:
    for path in tracked("scripts", ".ci"):
        if path.name == "setup":  # runs before there is a package to call
            continue
        assert path.read_text().count("\n") <= SCRIPT_LINES, named(path)
        assert os.access(path, os.X_OK), named(path)


def test_the_readmes_test_command_is_what_ci_runs() -> None:
    assert "\n$ scripts/test\n" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("\nexec scripts/test")


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield from build(COMMANDS)[1].items()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
def test_every_command_has_json_and_examples_that_parse(command: Command) -> None:
    parser = dict(parsers())[command.NAME]
    assert "--json" in parser.format_help()
    lines = command.EXAMPLES.splitlines()
    assert lines
    for line in lines:
        assert f"qmigrate {command.NAME}" in line or "qmigrate lab" in line, line


def test_the_handovers_page_is_its_table() -> None:
    text = pages.PAGE.read_text()
    assert text == pages.with_tables(text), "run: python -m tests.support.pages"


def test_the_readme_names_every_room_and_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text()
    rooms = {path.parent for path in tracked("qmigrate/*/__init__.py")}
    missing = [r.name for r in rooms if r.parent.name == "qmigrate" and f"`{r.name}/`" not in text]
    assert missing == []
    for code in range(10):
        assert re.search(rf"^\| {code} \|", text, re.M), code


def test_links_within_the_documents_lead_somewhere() -> None:
    for page in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{named(page)}: {target}"
