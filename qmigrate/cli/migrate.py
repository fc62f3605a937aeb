"""``qmigrate migrate``: move a running guest to another host."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qmigrate.cli.context import Context

if TYPE_CHECKING:
    from qmigrate.controller.plan import Wish
    from qmigrate.core.model import Finding

NAME = "migrate"
HELP = "move a guest to another host"
EXAMPLES = """\
qmigrate migrate web1 beta                        live, from wherever it runs
qmigrate migrate web1 beta --from root@alpha      when no inventory says where to look
qmigrate migrate web1 beta --offline              stopped meanwhile
qmigrate migrate web1 beta --dry-run              plan and findings; nothing is touched
qmigrate migrate web1 gamma --tunnel none         only if the guest's network is there too
qmigrate migrate web1 beta --bandwidth 800Mbit --downtime-limit 50
qmigrate migrate web1 beta --profile              and where each millisecond went
qmigrate migrate web1 beta --json >result.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_move(parser)
    how = parser.add_argument_group("how")
    mode = how.add_mutually_exclusive_group()
    mode.add_argument("--live", action="store_true", help="with the guest running (the default)")
    mode.add_argument("--offline", action="store_true", help="stop the guest first")
    how.add_argument(
        "--downtime-limit", type=_positive, metavar="MS", help="wished blackout; default: 20 ms"
    )
    how.add_argument(
        "--max-downtime",
        type=_positive,
        metavar="MS",
        help="how far the limit may be raised for a guest that does not converge; default: 300",
    )
    how.add_argument(
        "--bandwidth", type=_rate, metavar="RATE", help="as 800Mbit or 60MiB; default: unlimited"
    )
    how.add_argument(
        "--transport",
        choices=("direct", "relay", "relay+zstd"),
        default="direct",
        help="how memory travels: direct, in plain text (the default); relay, in TLS over"
        " connections that may break; relay+zstd, packed while it pays",
    )
    how.add_argument(
        "--timeout", type=_positive, metavar="S", help="give the copy up after so many seconds"
    )
    parser.add_argument("--dry-run", action="store_true", help="plan, findings, new command line")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument("--detach", action="store_true", help="start it and leave it to itself")
    # For tests: said in the agents' HELLO and in the result, so that no such move passes for one
    # in earnest. A flag, not the environment, which is inherited unseen.
    parser.add_argument("--fault", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--impatient", action="store_true", help=argparse.SUPPRESS)


def add_move(parser: argparse.ArgumentParser) -> None:
    """Add what `migrate` and `check` have in common."""
    from qmigrate.cli.parser import complete_with

    guest = parser.add_argument("guest", metavar="GUEST", help="name, UUID or pid")
    destination = parser.add_argument("destination", metavar="DEST", help="host to move it to")
    source = parser.add_argument("--from", dest="source", metavar="HOST", help="where it runs")
    complete_with(guest, "guest")
    complete_with(destination, "host")
    complete_with(source, "host")
    parser.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="RULE",
        help="go on in spite of this rule's findings; may be repeated",
    )
    parser.add_argument(
        "--stop-unit", action="store_true", help="stop the guest's unit instead of its QEMU"
    )
    parser.add_argument(
        "--address",
        action="append",
        default=[],
        metavar="ADDR",
        help="an address of the guest, to be announced; may be repeated",
    )
    parser.add_argument(
        "--bridge",
        action="append",
        default=[],
        type=_pair,
        metavar="HERE=THERE",
        help="the destination calls the guest's bridge otherwise; may be repeated",
    )
    parser.add_argument(
        "--tunnel",
        type=_tunnel,
        default="auto",
        metavar="KIND",
        help="where the destination is in another segment: auto (the default), none, or a kind",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _rate(text: str) -> int:
    from qmigrate.core.quantities import parse_rate

    try:
        return parse_rate(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _pair(text: str) -> tuple[str, str]:
    here, sign, there = text.partition("=")
    if not (here and sign and there):
        raise argparse.ArgumentTypeError(f"{text!r} is not HERE=THERE")
    return here, there


def _tunnel(text: str) -> str:
    from qmigrate.core.network import TUNNELS

    if text not in TUNNELS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of: {', '.join(TUNNELS)}")
    return text


def wish_of(context: Context, args: argparse.Namespace) -> "Wish":
    """Return what the arguments and the inventory together ask for; raises `UsageError`."""
    import ipaddress

    from qmigrate.controller.plan import Wish
    from qmigrate.core.errors import UsageError
    from qmigrate.core.faults import parse_fault
    from qmigrate.core.job import RELAY_GRACE_S, SHORT_PATIENCE, Limits, Mode, Patience, Transport
    from qmigrate.core.preflight import NAMES, UNFORCEABLE

    inventory = context.inventory()
    said = inventory.guest(args.guest)
    for rule in args.force:
        if rule not in NAMES:
            raise UsageError(f"no rule {rule!r}", next_step=f"rules: {', '.join(sorted(NAMES))}")
        if rule in UNFORCEABLE:
            raise UsageError(f"{rule} cannot be forced: nothing could be moved, or two of it")
    for address in args.address:
        try:
            ipaddress.ip_address(address)
        except ValueError as exc:
            raise UsageError(f"--address: {exc}") from exc
    named = args.source or said.host
    sources = (inventory.host(named),) if named else inventory.select(())
    defaults = inventory.defaults
    usual = Limits()
    limits = Limits(
        downtime_ms=_first(args, "downtime_limit", defaults.downtime_limit_ms, usual.downtime_ms),
        max_downtime_ms=_first(
            args, "max_downtime", defaults.max_downtime_ms, usual.max_downtime_ms
        ),
        bandwidth_bps=_first(args, "bandwidth", defaults.bandwidth_bps, usual.bandwidth_bps),
        timeout_s=getattr(args, "timeout", None),
    )
    if limits.downtime_ms > limits.max_downtime_ms:
        raise UsageError(
            f"--downtime-limit {limits.downtime_ms} is above --max-downtime "
            f"{limits.max_downtime_ms}"
        )
    transport = Transport(getattr(args, "transport", "direct"))
    relayed = transport is not Transport.DIRECT
    patience = Patience(link_grace_s=RELAY_GRACE_S) if relayed else Patience()
    return Wish(
        guest=args.guest,
        destination=inventory.host(args.destination),
        sources=sources,
        mode=Mode.OFFLINE if getattr(args, "offline", False) else Mode.LIVE,
        limits=limits,
        force=frozenset(args.force),
        stop_unit=args.stop_unit,
        addresses=(
            *((address, "option") for address in args.address),
            *((str(address), "inventory") for address in said.addresses),
        ),
        bridges=tuple(args.bridge),
        tunnel=args.tunnel,
        hosts=inventory.hosts,
        faults=tuple(map(parse_fault, getattr(args, "fault", ()))),
        patience=SHORT_PATIENCE if getattr(args, "impatient", False) else patience,
        transport=transport,
    )


def _first(args: argparse.Namespace, name: str, default: int | None, usual: int) -> int:
    given: int | None = getattr(args, name, None)
    return given if given is not None else default if default is not None else usual


async def run(context: Context, args: argparse.Namespace) -> int:
    """Move the guest; the exit code is DESIGN §6's."""
    wish = wish_of(context, args)

    import trio

    from qmigrate.cli.moving import MoveView, show_plan, show_result
    from qmigrate.cli.progress import open_progress
    from qmigrate.controller.migrate import BlockedByFindings, Move, Reins
    from qmigrate.controller.plan import Plan
    from qmigrate.controller.result import Result
    from qmigrate.core.errors import CancelledError, QmigrateError
    from qmigrate.core.job import Outcome

    reins = Reins(trio.Event(), trio.Event())
    findings: tuple[Finding, ...] = ()
    with open_progress(context.out) as progress:
        view = MoveView(context.out, progress)

        def on_signal(count: int) -> None:
            if view.job is None:  # nothing was touched: there is nothing to wait for
                untouched.cancel()
                return
            (reins.cancel if count == 1 else reins.leave).set()
            view.warn(
                "cancelling; once more to leave it to itself"
                if count == 1
                else f"leaving; job {view.job} goes on by itself, with the wish to cancel"
            )

        move = Move(wish, view, reins, detach=args.detach)
        untouched = trio.CancelScope()
        error: QmigrateError = CancelledError("cancelled before anything was touched")
        done: Plan | Result | None = None
        try:
            with context.interrupts.handled_by(on_signal), untouched:
                done = await move.run(plan_only=args.dry_run)
        except* QmigrateError as group:
            error = _only(group)
            if isinstance(error, BlockedByFindings):
                findings = error.findings
        view.ended()
        if done is None:
            done = Result(
                job=view.job,
                guest=wish.guest,
                source=move.plan.source.name if move.plan else None,
                destination=wish.destination.name,
                mode=wish.mode,
                outcome=(
                    Outcome.CANCELLED if isinstance(error, CancelledError) else Outcome.REFUSED
                ),
                exit_code=error.exit_code,
                wall_s=view.elapsed_s(),
                connect_s=move.connect_s,
                plan_s=move.plan_s,
                problem=error.problem,
                findings=findings,
                report=None,
            )
    if isinstance(done, Plan):
        return show_plan(context.out, done)
    if args.profile:
        from qmigrate.controller.profiling import profile_of

        done = replace(done, profile=profile_of(move, done))
    return show_result(context.out, done)


def _only(group: BaseExceptionGroup[Any]) -> Any:
    first = group.exceptions[0]
    return _only(first) if isinstance(first, BaseExceptionGroup) else first
