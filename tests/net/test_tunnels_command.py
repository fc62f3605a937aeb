"""`netsetup tunnel`, in processes of its own, as an administrator would type it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.netns import Namespace
from tests.support.sites import Sites, echo, nothing_left, two_sites

pytestmark = pytest.mark.net


def netsetup(place: Namespace, *words: str, code: int = 0) -> str:
    """Return what the command printed; it must end with `code`."""
    with place.popen(sys.executable, "-m", "netsetup", "tunnel", *words) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err + out
    return out + err


def parsed(place: Namespace, *words: str, code: int = 0) -> Any:
    return json.loads(netsetup(place, *words, "--json", code=code))


def ends(sites: Sites) -> list[tuple[Namespace, tuple[str, ...]]]:
    here, there = ("--local", "10.77.1.2"), ("--local", "10.77.2.2")
    return [
        (sites.alpha, ("--end", "home", *here, "--remote", "10.77.2.2")),
        (sites.beta, ("--end", "away", *there, "--remote", "10.77.1.2")),
    ]


def test_a_tunnel_is_made_listed_verified_and_removed_by_hand(tmp_path: Path) -> None:
    common = ("--home", "alpha/br0", "--guest", "web1", "--job", "j1")
    with two_sites(1500) as sites:
        before = [nothing_left(place) for place, _ in ends(sites)]
        made = [parsed(place, "create", *words, *common) for place, words in ends(sites)]
        home, away = (each["tunnel"] for each in made)
        assert home["id"] == away["id"]
        assert (home["key"], home["kind"], home["manner"]) == (away["key"], "vxlan", "fragments")
        assert made[0]["why"].startswith("vxlan over IPv4: it is UDP")
        assert any("gretap" in line for line in made[0]["passed_over"])
        assert home["problems"] == away["problems"] == []
        guest = sites.guest(sites.beta, away["bridge"])
        assert echo(guest, "192.0.2.1", 1472) == "ok"

        listed = parsed(sites.alpha, "list")
        assert listed["tunnels"] == [home]
        assert listed["one_end_only"] is None
        there = tmp_path / "alpha.json"
        there.write_text(json.dumps(listed))
        assert parsed(sites.beta, "list", "--beside", str(there))["one_end_only"] == []
        empty = tmp_path / "empty.json"
        empty.write_text(json.dumps({**listed, "tunnels": []}))
        alone = parsed(sites.beta, "list", "--beside", str(empty))
        assert [each["id"] for each in alone["one_end_only"]] == [home["id"]]
        assert "one end only" in netsetup(sites.beta, "list", "--beside", str(empty))

        assert "not encrypted" in netsetup(sites.alpha, "verify")
        sites.alpha.run("ip", "link", "set", home["port"], "down")
        assert "wrong: " in netsetup(sites.alpha, "verify", home["id"], code=4)
        assert "mended: " in netsetup(sites.alpha, "repair")
        assert parsed(sites.alpha, "verify", home["id"])["tunnels"] == [home]

        sites.beta.run("ip", "link", "del", "tap9")
        for name in (f"qmd-{home['id']}", away["port"], away["bridge"]):  # beta rebooted
            sites.beta.run("ip", "link", "del", name)
        again = parsed(sites.beta, "repair", "--lost", str(there), "--local", "10.77.2.2")
        assert [each["id"] for each in again["tunnels"]] == [home["id"]]
        assert parsed(sites.beta, "list")["tunnels"] == [away]

        assert "needed by nobody" not in netsetup(sites.beta, "list")
        assert parsed(sites.beta, "gc") == {
            "schema": "netsetup.tunnel-removal/1", "removed": [], "kept": None,
        }  # fmt: skip
        assert "j1 builds it" in netsetup(sites.beta, "gc", "--live-guest", "x", "--live-job", "j1")
        assert away["bridge"] in netsetup(sites.beta, "gc", "--live-guest", "x")
        removed = parsed(sites.alpha, "remove", home["id"], "--guest", "web1")["removed"]
        assert home["port"] in removed
        assert [nothing_left(place) for place, _ in ends(sites)] == before


def test_what_is_wrong_is_said_with_what_to_do(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with two_sites(1500) as sites:
        place, words = ends(sites)[0]
        said = netsetup(place, "create", *words, "--home", "alpha/br9", code=4)
        assert "there is no bridge br9" in said
        assert "bridges here: br0" in said
        assert "no tunnel is possible" in netsetup(
            place, "create", *words, "--home", "alpha/br0", "--kind", "etherip/kernel", code=4
        )
        netsetup(place, "create", *words, "--home", "nowhere", code=2)
        assert "tunnels here: none" in netsetup(place, "verify", "12345678", code=4)
        assert "list --json" in netsetup(place, "repair", "--lost", str(broken), code=2)
        assert netsetup(place, "list") == ""
