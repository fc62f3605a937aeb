"""Situations made by hand on real QEMU, and what ``qmigrate resolve`` shows and does about each."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulting import Faulty, Struck
from tests.support.moving import Moved
from tests.support.takeover import assert_ended_on, kill_both, start

pytestmark = [pytest.mark.fault, pytest.mark.qemu, pytest.mark.net]

NAME = "tiny1"
BEFORE_AWAY = "source:before record away:stop"
AFTER_AWAY = "source:before send-go:stop"


def resolve(faulty: Faulty, *options: str) -> Moved:
    """Run ``qmigrate resolve`` on the client; print what it said."""
    told = faulty.site.run("resolve", NAME, "--json", *options)
    assert told.result.get("schema") in ("qmigrate.resolve/1", "qmigrate.error/1"), told
    shown = {k: v for k, v in told.result.items() if k != "hosts"}
    print(json.dumps({"options": options, "code": told.code, **shown}, indent=1))
    return told


def acts(told: Moved) -> list[str]:
    return [acted["act"] for acted in told.result["acted"]]


def words(told: Moved) -> str:
    return " | ".join((*told.result["seen"], *told.result["means"]))


def host(told: Moved, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(h for h in told.result["hosts"] if h["host"] == name)
    return found


def start_with_disk(faulty: Faulty) -> Path:
    site = faulty.site
    disk = site.shared("tiny1.img", 4)
    site.start(replace(faulty.tiny(), disk=disk))
    faulty.before = site.await_life(NAME)
    return disk


def lose_journal(faulty: Faulty, name: str, job: str) -> None:
    shutil.rmtree(faulty.site.path(name, f"/run/qmigrate/jobs/{job}"))


def strike(faulty: Faulty, moment: str, side: str = "source") -> Struck:
    """Begin a move and let it stand still at a moment, with its controller dead."""
    struck = faulty.begin(NAME, points=[f"{side}:{moment}:stop"])
    struck.hold(side, moment)
    struck.kill_controller()
    return struck


def assert_resolved(faulty: Faulty, struck: Struck, on: str, told: Moved) -> None:
    assert (told.code, told.result["ends"], told.result["host"]) == (0, "runs", on), told.result
    assert_ended_on(faulty, struck, on)
    again = resolve(faulty)
    assert (again.code, again.result["acted"]) == (0, [])


@pytest.mark.parametrize(("moment", "on"), [("before send-go", "beta"), ("before check", "alpha")])
def test_agents_and_guardians_of_both_sides_killed(faulty: Faulty, moment: str, on: str) -> None:
    start(faulty)
    struck = strike(faulty, moment)
    for side in ("alpha", "beta"):
        kill_both(faulty, struck, side)
    looked = resolve(faulty, "--dry-run")
    assert (looked.code, acts(looked)) == (7, [])
    assert [what for what in looked.result["would"] if "start the agent" in what]
    assert_resolved(faulty, struck, on, resolve(faulty))
