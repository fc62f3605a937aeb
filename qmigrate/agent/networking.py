"""A job's own part in its guest's network: bridges turned, claims on tunnels let go. See DESIGN §5.

The controller builds tunnels before the job begins and may be gone when it ends. So each side lets
go of what serves nobody where it stands: a claim at a tunnel's away end is void where the guest is
not, one at its home end where the guest is. A third host is the controller's.
"""

from collections.abc import Callable
from contextlib import AsyncExitStack

from netsetup.errors import NetsetupError
from netsetup.links import OUR_ALIAS
from netsetup.rtnl import Rtnl
from netsetup.turning import Turn, Turner, arm
from qmigrate.core.home import ReleaseTunnels, TurnWish

Say = Callable[[str], None]


class Turning:
    """Home's bridge, to be turned to the tunnel once the right to run has been handed over.

    Nothing waits for it: on the way from `completed` to `cont` it costs the source a task.
    """

    def __init__(self, wishes: tuple[TurnWish, ...], say: Say) -> None:
        self._wishes = wishes
        self._say = say
        self._turner: Turner | None = None
        self._turned = False

    async def arm(self, rtnl: Rtnl, stack: AsyncExitStack) -> None:
        """Do what could fail or take time; what cannot be turned is learned from announcements."""
        turns = [Turn(wish.mac, wish.port, wish.vlan) for wish in self._wishes]
        if not turns:
            return
        try:
            self._turner = await stack.enter_async_context(arm(rtnl, turns))
        except NetsetupError as exc:
            self._say(f"the bridge will not be turned: {exc.what}")

    async def turn(self) -> None:
        """Point frames for the guest into the tunnel; only once."""
        if self._turner is None or self._turned:
            return
        self._turned = True
        for done in await self._turner.turn():
            self._say(f"{done.mac} to {done.port}: {done.problem or f'{done.took_ms:.2f} ms'}")

    async def back(self) -> None:
        """Put back what was: the guest runs here."""
        if self._turner is None or not self._turned:
            return
        self._turned = False
        for done in await self._turner.back():
            if done.problem:
                self._say(f"{done.mac} is not put back: {done.problem}")


async def release(rtnl: Rtnl, request: ReleaseTunnels, host: str) -> tuple[str, ...]:
    """Let go of a guest's claims here; return what could not be removed, a sentence each."""
    try:
        if not await rtnl.find_by_alias(f"{OUR_ALIAS}tunnel="):
            return ()
        from qmigrate.agent.tunnelling import release as release_here  # 30 ms that few jobs need

        await release_here(rtnl, request)
    except NetsetupError as exc:
        return (f"{host}: a tunnel of {request.guest}: {exc.what}",)
    return ()
