"""Does a guest answer, seen from a segment? Asked by ARP and neighbour discovery.

An answer counts if it comes from the guest's own MAC: a proxy's does not show that it is there.
"""

from collections.abc import Iterable
from contextlib import ExitStack

import trio

from netsetup.errors import FrameError, UsageError
from netsetup.frames import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV6,
    NEIGHBOUR_ADVERTISEMENT,
    Address,
    address_question,
    arp_untrusted,
    ethernet_untrusted,
    neighbour_untrusted,
    parse_mac,
)
from netsetup.learn import assemble
from netsetup.packets import CONTROL_BYTES, listen, stripped_vlan
from netsetup.rtnl import Rtnl
from netsetup.segment_facts import describe_bridge
from netsetup.segments import Segment

# A guest that has just been let run may have a queue to work off first.
ASK_EVERY_S = 0.1
_BUFFER_BYTES = 64 * 1024
_FRAME_BYTES = 256


async def reach(
    rtnl: Rtnl, segment: Segment, mac: str, addresses: Iterable[Address], *, patience_s: float
) -> tuple[Address, float] | None:
    """Return the first address that answers from `mac`, and after how many seconds; None: none.

    Raises `NoSuchLinkError`, `RefusedError`, and `UsageError` without an address to ask for.
    """
    wanted, guest = tuple(addresses), parse_mac(mac)
    if not wanted:
        raise UsageError("no address of the guest is known to ask for")
    bridge = segment.bridge
    facts = await rtnl.run(f"describe {bridge}", lambda ip: describe_bridge(ip, bridge))
    own = bytes.fromhex(facts.mac.replace(":", ""))
    sender = int.from_bytes(guest[:4]), int.from_bytes(guest[4:])
    program = assemble([[(6, 4, (sender[0],)), (10, 2, (sender[1],))]])
    with ExitStack() as stack:
        plain = stack.enter_context(listen(bridge, program, buffer_bytes=_BUFFER_BYTES))
        wire = stack.enter_context(trio.socket.from_stdlib_socket(plain.dup()))
        questions = [address_question(own, address, vlan=segment.vlan) for address in wanted]
        began = trio.current_time()
        with trio.move_on_after(patience_s):
            while True:
                for question in questions:
                    plain.sendto(question, (bridge, 0))
                with trio.move_on_after(ASK_EVERY_S):
                    while True:
                        frame, control, _, _ = await wire.recvmsg(_FRAME_BYTES, CONTROL_BYTES)
                        found = answer_untrusted(frame, guest, vlan=stripped_vlan(control))
                        if found is not None and found[1] == segment.vlan and found[0] in wanted:
                            return found[0], trio.current_time() - began
    return None


def answer_untrusted(
    frame: bytes, guest: bytes, *, vlan: int | None = None
) -> tuple[Address, int | None] | None:
    """Return the address that `guest` says it has, and the VLAN; None for any other frame."""
    try:
        outer = ethernet_untrusted(frame)
        if outer.source != guest:
            return None
        if outer.ethertype == ETHERTYPE_ARP:
            arp = arp_untrusted(outer.payload)
            if arp.operation == 2 and arp.sender_mac == guest:
                return arp.sender, outer.vlan or vlan
        elif outer.ethertype == ETHERTYPE_IPV6:
            said = neighbour_untrusted(outer.payload)
            advertises = said is not None and said.type == NEIGHBOUR_ADVERTISEMENT
            if said is not None and advertises and said.link_address in (None, guest):
                return said.target, outer.vlan or vlan
    except FrameError:
        return None
    return None
