"""A small controller: asks hosts about jobs as `resolve` will, one request after the other.

Run on the lab's client, ``python -m tests.support.asking WHAT …``; prints one JSON object, what was
answered or the problem::

    tell JOB HOST WORD              TellJob
    cancel JOB HOST                 CancelJob
    list HOST                       ListJobs
    carry JOB SOURCE DESTINATION    until the agents have a link or the job is over
    revive JOB DEAD LIVING          ReviveJob and RekeyJob, with new keys; then each is pointed
                                    at the other
    revive-carried JOB DEAD LIVING  the same, and carry
"""

import json
import sys
from typing import Any

import trio

from qmigrate.agent.protocol import codec
from qmigrate.agent.requests import CancelJob, ListJobs, PointJob, RekeyJob, ReviveJob, TellJob
from qmigrate.controller.carry import carry
from qmigrate.controller.inventory import load
from qmigrate.controller.keys import make_keys
from qmigrate.controller.remote import Agent, open_agents
from qmigrate.core.errors import QmigrateError
from qmigrate.core.handover import Word
from qmigrate.core.model import Side


async def _ask(what: str, words: list[str]) -> Any:
    job = words[0] if what != "list" else ""
    hosts = (
        words[:1] if what == "list" else words[1:2] if what in ("tell", "cancel") else words[1:3]
    )
    inventory = load()
    async with open_agents([inventory.host(host) for host in hosts]) as opened:
        agents = []
        for agent in opened:
            if not isinstance(agent, Agent):
                raise agent
            agents.append(agent)
        match what:
            case "tell":
                return await agents[0].call(TellJob(job, Word(words[2])))
            case "cancel":
                return await agents[0].call(CancelJob(job))
            case "list":
                return await agents[0].call(ListJobs())
            case "carry":
                return {"ended": await carry(agents[0], agents[1], job)}
            case "revive" | "revive-carried":
                await _revive(job, agents[0], agents[1])
                if what == "revive":
                    return {"ended": "revived"}
                # Whichever it is, the two are each other's peers: frames go both ways alike.
                return {"ended": await carry(agents[0], agents[1], job)}
            case _:
                raise ValueError(what)


async def _revive(job: str, dead: Agent, living: Agent) -> None:
    keys = await make_keys(job)
    jobs = (await dead.call(ListJobs())).jobs
    side = next((each.side for each in jobs if each.job == job), Side.SOURCE)
    ours, theirs = keys.source, keys.destination
    if side is Side.DESTINATION:
        ours, theirs = theirs, ours
    revived = await dead.call(ReviveJob(job, ours))
    rekeyed = await living.call(RekeyJob(job, theirs, revived.addresses))
    await dead.call(PointJob(job, rekeyed.addresses))


def main() -> None:
    """Ask, print, and leave with 1 if the answer was a problem."""
    what, *words = sys.argv[1:]

    async def run() -> int:
        try:
            answer = await _ask(what, words)
        except QmigrateError as exc:
            print(json.dumps({"problem": codec.unstructure(exc.problem)}))
            return 1
        print(json.dumps(codec.unstructure(answer)))
        return 0

    sys.exit(trio.run(run))


if __name__ == "__main__":
    main()
