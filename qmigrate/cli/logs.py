"""``qmigrate logs``: what was said in a job, by agents and QEMU, on every host of it."""

import argparse

from qmigrate.cli.context import Context
from qmigrate.cli.jobs import add_job, agents_of, telling

NAME = "logs"
HELP = "what agents and QEMU said in a job"
EXAMPLES = """\
qmigrate logs web1-3fa9c2
qmigrate logs web1-3fa9c2@beta --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_job(parser)


async def run(context: Context, args: argparse.Namespace) -> int:
    """Show the logs of each host that has some; exit code 4 if none has."""
    from qmigrate.agent.requests import Logs, ReadLogs
    from qmigrate.core.errors import HostError, QmigrateError

    found: list[dict[str, str]] = []
    problem: QmigrateError | None = None
    async with agents_of(context, args) as (job, agents):
        for agent in agents:
            try:
                logs: Logs = await agent.call(ReadLogs(job))
            except QmigrateError as exc:
                problem = telling(problem, exc)
                continue
            found += [
                {"host": agent.host, "name": file.name, "text": file.text} for file in logs.files
            ]
    if not found:
        raise problem or HostError(f"no host knows job {job}")
    if context.out.json:
        context.out.document("qmigrate.logs/1", {"job": job, "files": found})
        return 0
    for file in found:
        context.out.lines([f"==> {file['host']}:{file['name']} <==", *file["text"].splitlines()])
    return 0
