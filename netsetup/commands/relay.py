"""`netsetup relay`: the process that carries a tunnel's frames; `netsetup tunnel` starts it."""

import argparse
from ipaddress import ip_address
from typing import Any

from netsetup.commands.output import RAW

_EXAMPLES = """\
It is started where no program may be loaded, over IPv6, and beside programs for frames that do not
fit the path; it ends when its interface goes. By hand it is good for looking closely:
  netsetup relay 29d1aa8f --interface qmv-29d1aa8f --kind etherip \\
      --local 10.1.0.2 --remote 10.2.0.2 --foreground
"""


def add_parser(commands: Any) -> None:
    """Add `relay`."""
    relay = commands.add_parser(
        "relay",
        help="carry a tunnel's frames without programs in the kernel",
        epilog=_EXAMPLES,
        formatter_class=RAW,
    )
    relay.add_argument("tunnel", metavar="ID")
    relay.add_argument("--interface", required=True, help="the port's other end")
    relay.add_argument("--kind", required=True, choices=["etherip", "gretap"])
    relay.add_argument("--local", required=True, type=ip_address)
    relay.add_argument("--remote", required=True, type=ip_address)
    relay.add_argument("--key", type=int, default=0, help="of GRE; 0 is none")
    relay.add_argument("--reversed-header", action="store_true", help="send EtherIP as 03 00")
    relay.add_argument(
        "--longer-than", type=int, metavar="BYTES", help="only frames that programs leave to it"
    )
    relay.add_argument("--foreground", action="store_true", help="do not leave this session")
    relay.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry frames until the interface goes, in a session of its own; 0."""
    from netsetup.relay import Relay, RelaySpec, open_sockets, run_detached
    from netsetup.wire import Wire

    wire = Wire(options.kind, options.local, options.remote, options.key, options.reversed_header)
    spec = RelaySpec(options.tunnel, options.interface, wire, options.longer_than)
    relay = Relay(spec, open_sockets(spec))
    if options.foreground:
        relay.carry()
    else:
        run_detached(relay)
    return 0
