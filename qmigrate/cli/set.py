"""``qmigrate set``: change the limits of a move that is under way."""

import argparse

from qmigrate.cli.context import Context
from qmigrate.cli.jobs import add_job, agents_of, telling
from qmigrate.cli.migrate import _positive, _rate

_LIMITS = "name a limit: --bandwidth, --downtime-limit, --max-downtime"

NAME = "set"
HELP = "change the limits of a move that is under way"
EXAMPLES = """\
qmigrate set web1-3fa9c2 --bandwidth 200Mbit
qmigrate set web1-3fa9c2@alpha --max-downtime 1000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_job(parser)
    parser.add_argument("--downtime-limit", type=_positive, metavar="MS", help="wished blackout")
    parser.add_argument("--max-downtime", type=_positive, metavar="MS", help="raised at most to")
    parser.add_argument("--bandwidth", type=_rate, metavar="RATE", help="as 800Mbit or 60MiB")


async def run(context: Context, args: argparse.Namespace) -> int:
    """Ask every host that may have the job; the source answers."""
    from dataclasses import asdict

    from qmigrate.agent.requests import SetJob
    from qmigrate.core.errors import QmigrateError, UsageError
    from qmigrate.core.job import Limits
    from qmigrate.core.quantities import human_rate

    if args.downtime_limit is args.max_downtime is args.bandwidth is None:
        raise UsageError("nothing to set", next_step=_LIMITS)
    problem: QmigrateError | None = None
    async with agents_of(context, args) as (job, agents):
        for agent in agents:
            request = SetJob(job, args.downtime_limit, args.max_downtime, args.bandwidth)
            try:
                now: Limits = await agent.call(request)
            except QmigrateError as exc:
                problem = telling(problem, exc)
                continue
            if context.out.json:
                context.out.document("qmigrate.set/1", {"job": job, "limits": asdict(now)})
            else:
                rate = human_rate(now.bandwidth_bps) if now.bandwidth_bps else "unlimited"
                limit = f"downtime limit {now.downtime_ms} ms, at most {now.max_downtime_ms} ms"
                context.out.lines([f"{job}: {limit}, bandwidth {rate}"])
            return 0
    raise problem or UsageError(f"no host to ask about job {job}")
