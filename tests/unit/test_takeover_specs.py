"""A job's spec: the memfd with its key, the file without it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from qmigrate.agent.specs import NOBODY, add_told, keep_spec, make_told, read_spec, read_told
from qmigrate.core.errors import ProtocolError
from qmigrate.core.job import JobSpec, Limits, Mode
from qmigrate.core.model import Side
from qmigrate.core.secret import Identity, Secret

SPEC = JobSpec(
    job="web1-1",
    side=Side.SOURCE,
    guest="web1",
    uuid=None,
    mode=Mode.LIVE,
    identity=Identity("mine", Secret("the key"), "theirs"),
    listen_addresses=("192.0.2.1",),
    port_range=None,
    limits=Limits(),
    host="alpha",
    peer_host="beta",
    disks=("/images/web1.img",),
)


def test_the_file_has_all_but_the_identity_and_is_roots_alone(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    keep_spec(path, SPEC)
    assert read_spec(path) == replace(SPEC, identity=NOBODY)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "the key" not in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "", "{}", '{"job": 7}'])
def test_a_file_that_is_not_whole_is_no_spec(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "spec.json"
    if content is not None:
        path.write_text(content)
    assert read_spec(path) is None


def test_new_keys_count_once_they_are_written_whole() -> None:
    rekeyed = replace(SPEC, identity=Identity("new", Secret("another"), "theirs"))
    told = make_told(SPEC)
    try:
        assert read_told(told) == SPEC
        add_told(told, rekeyed)
        whole = os.fstat(told).st_size
        assert read_told(told) == rekeyed
        os.ftruncate(told, whole - 10)  # killed in the middle of writing
        assert read_told(told) == SPEC
        add_told(told, rekeyed)
        assert read_told(told) == rekeyed
    finally:
        os.close(told)


def test_an_empty_memfd_is_no_spec() -> None:
    told = os.memfd_create("empty")
    try:
        with pytest.raises(ProtocolError):
            read_told(told)
    finally:
        os.close(told)
