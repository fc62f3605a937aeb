"""A guest moves from alpha to beta on one segment: who believes it where, before and after."""

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from netsetup import frames
from netsetup.__main__ import main
from netsetup.announce import AnnouncePlan, arm, plan
from netsetup.errors import NetsetupError, NoSuchLinkError
from netsetup.frames import FrameKind
from netsetup.links import TapSpec
from netsetup.rtnl import Rtnl
from tests.support.netns import (
    Namespace,
    Segment,
    add_bridge,
    drain,
    eventually,
    fresh_namespace,
    learned_port,
    open_tap,
    packet_socket,
    run,
    segment,
)

pytestmark = pytest.mark.net

MAC = "52:54:00:aa:00:01"
STALE = "52:54:00:bb:00:02"
ADDRESSES = [ip_address("192.0.2.9"), ip_address("2001:db8::9")]
SHORT_MS = (0, 10, 20)
SPEC = TapSpec(bridge="br0", alias="qmigrate:web1/0", vnet_hdr=False)


@dataclass(frozen=True)
class Moved:
    """The guest ran on alpha and was heard; its tap on beta is open, and has said nothing."""

    segment: Segment
    alpha_tap: str
    beta_tap: str
    beta_end: int  # the guest's end of the tap on beta

    def beliefs(self) -> dict[str, str | None]:
        """Return the port behind which each bridge believes the guest."""
        return {
            "switch": self.segment.switch_port(MAC),
            "alpha": learned_port(self.segment.alpha, "br0", MAC),
            "beta": learned_port(self.segment.beta, "br0", MAC),
        }

    def client_neighbour(self, address: str) -> str | None:
        """Return the MAC that the client has for `address`."""
        entries = json.loads(self.segment.client.run("ip", "-j", "neighbour", "show", address))
        return entries[0].get("lladdr") if entries else None


@pytest.fixture
async def moved() -> "Iterator[Moved]":  # type: ignore[misc]
    with segment() as places:
        taps = []
        for place in (places.alpha, places.beta):
            with place.entered():
                async with Rtnl() as rtnl:
                    taps.append((await rtnl.create_tap(SPEC)).name)
        ends = []
        for place, tap in zip((places.alpha, places.beta), taps, strict=True):
            with place.entered():
                ends.append(open_tap(tap))
        alpha_end, beta_end = ends
        for place, tap in zip((places.alpha, places.beta), taps, strict=True):
            await eventually(
                lambda place=place, tap=tap: (
                    "forwarding" in place.run("bridge", "link", "show", "dev", tap)
                ),
                "the tap forwards",
            )
        os.write(alpha_end, frames.rarp_announcement(frames.parse_mac(MAC)))
        yielded = Moved(places, taps[0], taps[1], beta_end)
        on_alpha = {"switch": "alpha", "alpha": taps[0], "beta": "eth0"}
        await eventually(lambda: yielded.beliefs() == on_alpha, "all believe it on alpha")
        client = places.client
        for address in ("192.0.2.9", "2001:db8::9"):  # as a proxy's answer would have left it
            client.run(
                *("ip", "neighbour", "replace", address, "lladdr", STALE),
                *("dev", "eth0", "nud", "stale"),
            )
        drain(beta_end)
        yield yielded
        for end in ends:
            os.close(end)


async def announce(moved: Moved, planned: AnnouncePlan, tap: str | None) -> object:
    with moved.segment.beta.entered():
        async with Rtnl() as rtnl, arm(rtnl, planned, interface="br0", tap=tap) as announcer:
            async with trio.open_nursery() as nursery:
                first = await announcer.fire(nursery)
            return first, announcer.record


async def test_every_bridge_and_cache_turns_at_fire(moved: Moved) -> None:
    planned = plan(ADDRESSES, MAC, schedule_ms=[0])
    first, record = await announce(moved, planned, moved.beta_tap)
    assert [sent.kind for sent in first.sent] == [FrameKind.RARP, FrameKind.GARP, FrameKind.NA]
    assert record.problems == ()
    assert record.fdb_port == moved.beta_tap
    on_beta = {"switch": "beta", "alpha": "eth0", "beta": moved.beta_tap}
    await eventually(lambda: moved.beliefs() == on_beta, "all bridges believe it on beta")
    for address in ("192.0.2.9", "2001:db8::9"):
        await eventually(
            lambda address=address: moved.client_neighbour(address) == MAC, f"{address} turned"
        )


async def test_nothing_turns_by_itself(moved: Moved) -> None:
    """The table of the test above has something to show."""
    await trio.testing.wait_all_tasks_blocked()
    assert moved.beliefs() == {"switch": "alpha", "alpha": moved.alpha_tap, "beta": "eth0"}
    assert moved.client_neighbour("192.0.2.9") == STALE
    assert moved.client_neighbour("2001:db8::9") == STALE


async def test_with_no_address_known_bridges_turn_and_caches_do_not(moved: Moved) -> None:
    _, record = await announce(moved, plan([], MAC, schedule_ms=[0]), moved.beta_tap)
    assert "no address" in record.note
    await eventually(lambda: moved.beliefs()["alpha"] == "eth0", "alpha's bridge turned")
    assert moved.client_neighbour("192.0.2.9") == STALE


async def test_the_guest_does_not_hear_its_own_name_called(moved: Moved) -> None:
    await announce(moved, plan(ADDRESSES, MAC, schedule_ms=[0]), moved.beta_tap)
    mac = frames.parse_mac(MAC)
    assert not [frame for frame in drain(moved.beta_end) if frame[6:12] == mac]
    # Without a tap the bridge floods to all, the guest too: which is why a tap is asked for.
    await announce(moved, plan(ADDRESSES, MAC, schedule_ms=[0]), None)
    await eventually(
        lambda: bool([f for f in drain(moved.beta_end) if f[6:12] == mac]), "the guest hears it"
    )


async def test_the_guest_can_be_reached_from_both_sides_after_it(moved: Moved) -> None:
    await announce(moved, plan(ADDRESSES, MAC, schedule_ms=[0]), moved.beta_tap)
    mac = frames.parse_mac(MAC)
    for place, interface in ((moved.segment.client, "eth0"), (moved.segment.alpha, "br0")):
        with place.entered(), packet_socket(interface) as wire:
            wire.send(mac + frames.parse_mac(STALE) + b"\x88\xb5" + interface.encode() + bytes(50))
        await eventually(
            lambda interface=interface: any(
                f[14 : 14 + len(interface)] == interface.encode() for f in drain(moved.beta_end)
            ),
            f"a frame from {interface}",
        )


async def test_the_schedule_goes_on_in_the_callers_nursery(moved: Moved) -> None:
    planned = plan(ADDRESSES, MAC, schedule_ms=SHORT_MS)
    with moved.segment.client.entered():
        heard = packet_socket("eth0")
    with heard:
        first, record = await announce(moved, planned, moved.beta_tap)
        mine = []
        while len(mine) < 9:
            frame = heard.recv(2000)
            mine += [frame] if frame[6:12] == frames.parse_mac(MAC) else []
    assert mine == [frame.octets for frame in planned.frames]
    assert len(first.sent) == 3
    assert not first.complete
    assert len(record.sent) == 9
    assert record.complete
    for sent, frame in zip(record.sent, planned.frames, strict=True):
        assert (sent.kind, sent.address) == (frame.kind, frame.address)
        assert sent.at_ms >= frame.at_ms


async def test_a_cancelled_nursery_ends_the_schedule(moved: Moved) -> None:
    planned = plan(ADDRESSES, MAC, schedule_ms=[0, 60_000])
    with moved.segment.beta.entered():
        async with Rtnl() as rtnl, arm(rtnl, planned, interface="br0") as announcer:
            async with trio.open_nursery() as nursery:
                await announcer.fire(nursery)
                with pytest.raises(NetsetupError, match="fired already"):
                    await announcer.fire(nursery)
                nursery.cancel_scope.cancel()
            assert len(announcer.record.sent) == 3
            assert not announcer.record.complete


async def test_fired_in_a_cancelled_nursery_the_first_round_and_the_entry_are_still_made(
    moved: Moved,
) -> None:
    planned = plan(ADDRESSES, MAC, schedule_ms=[0, 60_000])
    with moved.segment.beta.entered():
        async with (
            Rtnl() as rtnl,
            arm(rtnl, planned, interface="br0", tap=moved.beta_tap) as announcer,
        ):
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.cancel()
                first = await announcer.fire(nursery)
            assert len(first.sent) == len(announcer.record.sent) == 3
            assert announcer.record.fdb_port == moved.beta_tap


async def test_the_tag_goes_out_and_the_entry_of_a_plain_bridge_has_none(moved: Moved) -> None:
    planned = plan(ADDRESSES, MAC, vlan=10, schedule_ms=[0])
    with moved.segment.client.entered():
        capture = moved.segment.client.popen(
            *("tcpdump", "-nneli", "eth0", "-c", "3", "--immediate-mode", "vlan", "10")
        )
    assert capture.stderr is not None
    while "listening" not in capture.stderr.readline():
        pass
    _, record = await announce(moved, planned, moved.beta_tap)
    assert record.problems == ()
    shown, _ = capture.communicate(timeout=10)
    assert shown.count("vlan 10, p 0") == 3
    await eventually(lambda: moved.beliefs()["beta"] == moved.beta_tap, "beta's own bridge")


async def test_what_fails_at_fire_is_in_the_record_and_not_raised(moved: Moved) -> None:
    planned = plan(ADDRESSES, MAC, schedule_ms=[0])
    beta = moved.segment.beta
    with beta.entered():
        async with (
            Rtnl() as rtnl,
            arm(rtnl, planned, interface="br0", tap=moved.beta_tap) as announcer,
        ):
            beta.run("ip", "link", "set", "eth0", "down")
            beta.run("ip", "link", "delete", moved.beta_tap)
            async with trio.open_nursery() as nursery:
                await announcer.fire(nursery)
            problems = announcer.record.problems
    assert problems[0] == "eth0: Network is down"
    assert problems[1].startswith("forwarding entry: the kernel refused to point")
    assert announcer.record.fdb_port is None


async def test_a_port_that_did_not_forward_yet_is_tried_again(moved: Moved) -> None:
    planned = plan(ADDRESSES, MAC, schedule_ms=range(0, 5000, 100))
    beta = moved.segment.beta
    spec = replace(SPEC, alias="qmigrate:web2/0")
    with beta.entered():
        async with Rtnl() as rtnl:
            tap = (await rtnl.create_tap(spec)).name
            await eventually(
                lambda: "disabled" in beta.run("bridge", "link", "show", "dev", tap),
                "disabled: no process has it open",
            )
            async with (
                arm(rtnl, planned, interface="br0", tap=tap) as announcer,
                trio.open_nursery() as nursery,
            ):
                await announcer.fire(nursery)
                await eventually(lambda: announcer.record.fdb_problem is not None, "refused")
                assert "disabled in br0" in (announcer.record.fdb_problem or "")
                assert learned_port(beta, "br0", MAC) == "eth0"
                end = open_tap(tap)
                await eventually(lambda: announcer.record.fdb_port == tap, "tried again")
                nursery.cancel_scope.cancel()
    assert announcer.record.fdb_problem is None
    assert learned_port(beta, "br0", MAC) == tap
    os.close(end)


@pytest.mark.parametrize(
    ("interface", "tap", "words"),
    [("br9", None, "no interface br9"), ("br0", "tap9", "no interface tap9"),
     ("br0", "lo", "lo is no port of br0")],
)  # fmt: skip
async def test_what_is_not_there_is_said_when_arming(
    interface: str, tap: str | None, words: str
) -> None:
    with fresh_namespace() as place, place.entered():
        add_bridge(place, "br0")
        async with Rtnl() as rtnl:
            with pytest.raises(NoSuchLinkError, match=words):
                async with arm(rtnl, plan([], MAC), interface=interface, tap=tap):
                    pass


async def test_a_plan_learned_late_replaces_the_first_until_it_fires(moved: Moved) -> None:
    with moved.segment.beta.entered():
        async with Rtnl() as rtnl, arm(rtnl, plan([], MAC), interface="br0") as announcer:
            announcer.replan(plan(ADDRESSES, MAC, schedule_ms=[0]))
            async with trio.open_nursery() as nursery:
                record = await announcer.fire(nursery)
            assert len(record.sent) == 3
            with pytest.raises(NetsetupError, match="fired"):
                announcer.replan(plan([], MAC))


WORDS = {
    FrameKind.RARP: "Reverse Request who-is 52:54:00:aa:00:01 tell 52:54:00:aa:00:01",
    FrameKind.GARP: "Request who-has 192.0.2.9 tell 192.0.2.9",
    FrameKind.GARP_REPLY: "Reply 192.0.2.9 is-at 52:54:00:aa:00:01",
    FrameKind.NA: "[icmp6 sum ok] ICMP6, neighbor advertisement, length 32, tgt is 2001:db8::9",
}


def test_another_decoder_reads_what_we_mean(tmp_path: Path) -> None:
    planned = plan(ADDRESSES, MAC, schedule_ms=[0], reply_form=True)
    for frame in planned.frames:
        size = len(frame.octets)
        capture = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
        capture += struct.pack("<IIII", 0, 0, size, size) + frame.octets
        path = tmp_path / f"{frame.kind}.pcap"
        path.write_bytes(capture)
        shown = run("tcpdump", "-nnevvr", str(path))
        assert WORDS[frame.kind] in shown
        assert f"{MAC} > " in shown
        assert "truncated" not in shown
    assert {frame.kind for frame in planned.frames} == set(WORDS)
    assert "Flags [override]" in shown


def command(place: Namespace, *argv: str) -> int:
    with place.entered():
        return main(argv)


def test_the_command_announces_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    with fresh_namespace() as place:
        add_bridge(place, "br0")
        place.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        place.run("ip", "link", "set", "eth0", "master", "br0", "up")
        place.run("ip", "link", "set", "far0", "up", "alias", "qmigrate:far")
        place.run("ip", "tuntap", "add", "tap0", "mode", "tap")
        place.run("ip", "link", "set", "tap0", "master", "br0", "up")
        common = ("announce", "--interface", "br0", "--mac", MAC, "--schedule", "0")
        assert command(place, *common, "--address", "192.0.2.9", "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["schema"] == "netsetup.announce/1"
        assert [sent["kind"] for sent in shown["sent"]] == ["rarp", "garp"]
        assert shown["problems"] == []

        while "disabled" not in place.run("bridge", "link", "show", "dev", "tap0"):
            pass  # the kernel's link watch runs once a second at most
        assert command(place, *common, "--tap", "tap0") == 0
        out = capsys.readouterr().out
        assert f"{MAC}: 1 frames sent on eth0" in out
        assert "tap0 is disabled in br0" in out
        assert "no address of the guest is known" in out

        place.run("ip", "link", "set", "eth0", "down")
        assert command(place, *common, "--tap", "tap0") == 4
        assert "no frame could be sent" in capsys.readouterr().err

        assert command(place, "show", "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert [bridge["ports"] for bridge in shown["bridges"]] == [["eth0", "tap0"]]
        assert [tap["name"] for tap in shown["taps"]] == ["tap0"]
        assert [link["alias"] for link in shown["ours"]] == ["qmigrate:far"]
        assert command(place, "show") == 0
        assert "tap0" in capsys.readouterr().out
