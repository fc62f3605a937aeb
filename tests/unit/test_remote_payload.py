"""The pushed agent: reproducible, pure Python, whole, and started by words any shell can carry."""

import hashlib
import io
import shlex
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, PackagePath
from pathlib import Path

import pytest

from qmigrate.controller import payload as payload_module
from qmigrate.controller.payload import (
    KEPT,
    Payload,
    build_payload,
    load_payload,
    start_command,
)
from qmigrate.core.errors import AgentStartError


@pytest.fixture(scope="module", autouse=True)
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of our packages, so that nobody edits them between two builds."""
    root = tmp_path_factory.mktemp("sources")
    for package in ("qmigrate", "netsetup"):
        shutil.copytree(payload_module._root_of(package) / package, root / package)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload_module, "_root_of", lambda _: root)
        yield root


@pytest.fixture(scope="module")
def built(sources: Path) -> Payload:
    return build_payload()


@pytest.fixture
def entries(built: Payload) -> list[zipfile.ZipInfo]:
    return zipfile.ZipFile(io.BytesIO(built.data)).infolist()


def test_two_builds_are_the_same_to_the_byte(built: Payload) -> None:
    assert build_payload() == built


def test_nothing_in_it_tells_when_or_by_whom_it_was_built(entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    assert names == sorted(set(names))
    for entry in entries:
        assert entry.date_time == (1980, 1, 1, 0, 0, 0)
        mode = 0o40755 if entry.is_dir() else 0o100644
        assert entry.external_attr >> 16 == mode


def test_only_python_sources_get_in(entries: list[zipfile.ZipInfo]) -> None:
    assert {Path(e.filename).suffix for e in entries if not e.is_dir()} == {".py"}


@pytest.mark.parametrize(
    "name",
    [
        "__main__.py",
        "netsetup/__init__.py",
        "qemu/",  # without it the namespace package cannot be imported before 3.14
        "qemu/qmp/qmp_client.py",
        "qmigrate/__init__.py",
        "qmigrate/agent/server.py",
        "qmigrate/core/model.py",
        "trio/__init__.py",
        "typing_extensions.py",
    ],
)
def test_what_the_agent_needs_is_in_it(name: str, entries: list[zipfile.ZipInfo]) -> None:
    assert name in [entry.filename for entry in entries]


@pytest.mark.parametrize(
    "part", ["paramiko", "cryptography", "rich", "controller", "lab", "_tests", "qmp_tui"]
)
def test_what_no_agent_needs_stays_here(part: str, entries: list[zipfile.ZipInfo]) -> None:
    assert not [e for e in entries if part in Path(e.filename).with_suffix("").parts]


@pytest.mark.parametrize("name", ["_fast.cpython-311.so", "lib/helper.pyd", "x.dylib", "y.o"])
def test_a_distribution_with_compiled_code_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Compiled(Distribution):
        version = "1"
        files = [PackagePath("trio/__init__.py"), PackagePath(f"trio/{name}")]  # noqa: RUF012

        def read_text(self, filename: str) -> str | None:
            return None

        def locate_file(self, path: object) -> Path:
            return Path("/dev/null")

    monkeypatch.setattr(payload_module, "distribution", lambda _: Compiled())
    with pytest.raises(AgentStartError, match=r"compiled code .* cannot be pushed"):
        build_payload()


def test_a_missing_distribution_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "DISTRIBUTIONS", ("trio", "no-such-thing"))
    with pytest.raises(AgentStartError, match="no-such-thing"):
        load_payload()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Payload) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_payload() == built
    return tmp_path / "qmigrate/payload"


def test_a_second_load_reads_the_cache_and_builds_nothing(
    cache: Path, built: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload_module, "build_payload", None)
    assert load_payload() == built


def test_a_damaged_cache_is_built_anew(cache: Path, built: Payload) -> None:
    (file,) = cache.iterdir()
    file.write_bytes(b"damaged")
    assert load_payload() == built
    assert [path.read_bytes() for path in cache.iterdir()] == [built.data]


def test_an_edited_source_makes_another_payload(cache: Path, sources: Path, built: Payload) -> None:
    edited = sources / "qmigrate/core/extra.py"
    edited.write_text("EXTRA = 1\n")
    try:
        assert load_payload().sha != built.sha
    finally:
        edited.unlink()


def test_another_version_of_a_part_makes_another_payload(
    cache: Path, built: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload_module, "version", lambda name: f"of {name}")
    assert load_payload().sha != built.sha
    assert len(list(cache.iterdir())) == 2


def test_versions_in_use_by_turns_build_nothing_anew_and_old_ones_go(
    cache: Path, built: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[str] = []

    def build(number: int) -> Payload:
        builds.append(str(number))
        data = f"{number}".encode()
        return Payload(hashlib.sha256(data).hexdigest(), data)

    def use(number: int) -> None:
        monkeypatch.setattr(payload_module, "_key", lambda: f"key{number}")
        monkeypatch.setattr(payload_module, "build_payload", lambda: build(number))
        assert load_payload().data == f"{number}".encode()

    for number in (0, 1, 0, 1, 0):
        use(number)
    assert builds == ["0", "1"]
    for number in range(2, 9):
        use(number)
    assert len(list(cache.iterdir())) == KEPT
    use(8)
    assert builds == [str(number) for number in range(9)]


def test_of_several_threads_one_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Payload
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    builds: list[None] = []

    def build() -> Payload:
        builds.append(None)
        return built

    monkeypatch.setattr(payload_module, "build_payload", build)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: load_payload(), range(8)))
    assert found == [built] * 8
    assert len(builds) == 1


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Payload
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_payload() == built


def test_the_start_command_passes_through_every_login_shell(built: Payload) -> None:
    argv = start_command(built, "M", python=None, sudo=True, as_user=False)
    line = shlex.join(argv)
    assert "\n" not in line  # csh ends a quoted word there
    assert "!" not in line  # csh and bash expand it
    assert not [word for word in argv if "'" in word]  # so that '…' is quoting enough
    assert len(line) < 32_000
