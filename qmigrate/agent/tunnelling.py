"""Tunnels of this host, as the controller or a job asks: chosen, made, released, mended, turned.

What is there is read from netlink every time. A guest's tag is its claim on a tunnel; an end goes
with the last claim, but never while a guest's tap is in its private bridge.
"""

from ipaddress import ip_address

from netsetup import choice, tunnels
from netsetup.errors import NetsetupError
from netsetup.mtu import Manner
from netsetup.rtnl import Rtnl
from netsetup.tunnel_spec import (
    End,
    Part,
    Tag,
    Tunnel,
    TunnelSpec,
    choose_key,
    mirrored,
    spec_of,
    tunnel_id,
)
from netsetup.turning import Turn, arm
from qmigrate.agent.network import (
    as_host_errors,
    home_here,
    home_there,
    open_network,
    tunnel_here,
)
from qmigrate.agent.server import AgentContext
from qmigrate.core.home import ReleaseTunnels, TunnelsReleased, TurnWish
from qmigrate.core.network import OWNER, TunnelHere
from qmigrate.core.tunnel_requests import (
    Abilities,
    ChooseTunnel,
    GetAbilities,
    MakeTunnel,
    RepairTunnels,
    TunnelMade,
    TunnelsRepaired,
    Turned,
    TurnSegment,
)
from qmigrate.core.tunnels import Ability, TunnelChoice, TunnelEnd


async def get_abilities(ctx: AgentContext, request: GetAbilities) -> Abilities:
    """Answer `GetAbilities`; each kind is tried for a moment, once an IP version."""
    network = await ctx.shared.once(open_network)
    found: list[choice.Ability] = []
    with as_host_errors():
        for local, remote in request.pairs:
            one, other = ip_address(local), ip_address(remote)
            if all(each.family != one.version for each in found):
                found += await tunnels.abilities(network.rtnl, one, other)
        here = await tunnels.list_tunnels(network.rtnl)
    return Abilities(
        tuple(Ability(a.kind, a.backend, a.family, a.why_not) for a in found),
        tuple(map(tunnel_here, here)),
    )


async def choose_tunnel(_ctx: AgentContext, request: ChooseTunnel) -> TunnelChoice:
    """Answer `ChooseTunnel`; nothing of this host matters to it, and nothing is made.

    A tunnel that joins the two already is shared: its guests would lose it if it were another.
    """
    with as_host_errors():
        home = home_there(request.home)
        chosen = _choose(request, request.wanted)
        shared = _shared(request, tunnel_id(home, chosen.path.local, chosen.path.remote))
        if shared is not None and shared.kind != chosen.kind and request.wanted == choice.AUTO:
            chosen = _choose(request, shared.kind or request.wanted)
        local, remote = chosen.path.local, chosen.path.remote
        everywhere = (*request.home_abilities.tunnels, *request.away_abilities.tunnels)
        taken = frozenset(tunnel.key for tunnel in everywhere if tunnel.key is not None)
        key = shared.key if shared is not None else None
        spec = TunnelSpec(
            kind=chosen.kind,
            local=local,
            remote=remote,
            home=home,
            end=End.HOME,
            key=key or choose_key(home, local, remote, taken=taken),
            mtu_bytes=request.mtu_bytes,
            manner=chosen.fit.manner,
            tag=Tag(OWNER, request.job),
            guests=(request.guest,),
        )
    return TunnelChoice(
        id=spec.id,
        home_end=_end(spec, chosen.backend),
        away_end=_end(mirrored(spec), chosen.their_backend),
        private_bridge=spec.name(Part.BRIDGE),
        home_port=spec.name(Part.PORT),
        why=chosen.why,
        cost=chosen.fit.cost,
        whole=chosen.fit.manner is Manner.WHOLE,
        passed_over=chosen.passed_over,
    )


def _choose(request: ChooseTunnel, wanted: str) -> choice.Choice:
    return choice.choose(
        _abilities(request.home_abilities),
        _abilities(request.away_abilities),
        [
            choice.Path(ip_address(path.local), ip_address(path.remote), path.mtu_bytes)
            for path in request.paths
        ],
        mtu_bytes=request.mtu_bytes,
        tags=request.tags,
        wanted=wanted,
    )


def _shared(request: ChooseTunnel, id_: str) -> TunnelHere | None:
    """Return the end of that tunnel that is there; home's, if both are."""
    everywhere = (*request.home_abilities.tunnels, *request.away_abilities.tunnels)
    return next((tunnel for tunnel in everywhere if tunnel.id == id_), None)


def _abilities(told: Abilities) -> tuple[choice.Ability, ...]:
    return tuple(choice.Ability(a.kind, a.backend, a.family, a.why_not) for a in told.abilities)


def _end(spec: TunnelSpec, backend: str) -> TunnelEnd:
    return TunnelEnd(
        kind=spec.kind,
        backend=backend,
        local=str(spec.local),
        remote=str(spec.remote),
        home=home_here(spec.home),
        end=str(spec.end),
        key=spec.key,
        mtu_bytes=spec.mtu_bytes,
        manner=str(spec.manner),
        guest=spec.guests[0],
        job=spec.tag.job,
    )


async def make_tunnel(ctx: AgentContext, request: MakeTunnel) -> TunnelMade:
    """Answer `MakeTunnel`; an end that is there keeps its own key, kind and other claims."""
    network = await ctx.shared.once(open_network)
    told = request.end
    with as_host_errors():
        spec = TunnelSpec(
            kind=told.kind,
            local=ip_address(told.local),
            remote=ip_address(told.remote),
            home=home_there(told.home),
            end=End(told.end),
            key=told.key,
            mtu_bytes=told.mtu_bytes,
            manner=Manner(told.manner),
            tag=Tag(OWNER, told.job),
            guests=(told.guest,),
        )
        before = await _find(network.rtnl, spec.id)
        made = await tunnels.create(network.rtnl, spec, backend=told.backend)
    claimed = before is None or told.guest not in before.guests
    return TunnelMade(tunnel_here(made.tunnel), made.mended, claimed)


async def _find(rtnl: Rtnl, tunnel: str) -> Tunnel | None:
    return next((each for each in await tunnels.list_tunnels(rtnl) if each.id == tunnel), None)


async def release_tunnels(ctx: AgentContext, request: ReleaseTunnels) -> TunnelsReleased:
    """Answer `ReleaseTunnels`."""
    network = await ctx.shared.once(open_network)
    with as_host_errors():
        return await release(network.rtnl, request)


async def release(rtnl: Rtnl, request: ReleaseTunnels) -> TunnelsReleased:
    """Take claims away; raises netsetup's errors. What others need, stays and is told."""
    removed: list[str] = []
    kept: list[str] = []
    for tunnel in await tunnels.list_tunnels(rtnl):
        claimed = request.guest in tunnel.guests
        if tunnel.guests and not claimed and request.guest is not None:
            continue
        if request.end is not None and tunnel.end != request.end:
            continue
        if request.only is not None and tunnel.id not in request.only:
            continue
        if tunnel.id in request.keep:
            continue
        done = await tunnels.remove(rtnl, tunnel.id, guest=request.guest)
        removed += done.removed
        kept += [f"tunnel {tunnel.id}: {done.kept}"] if done.kept and claimed else []
    return TunnelsReleased(tuple(removed), tuple(kept))


async def repair_tunnels(ctx: AgentContext, request: RepairTunnels) -> TunnelsRepaired:
    """Answer `RepairTunnels`."""
    network = await ctx.shared.once(open_network)
    with as_host_errors():
        specs = [spec_of(_tunnel(told)) for told in request.lost]
        lost = [mirrored(spec) for spec in specs if spec is not None]
        results = await tunnels.repair(network.rtnl, lost)
    errors = [result.what for result in results if isinstance(result, NetsetupError)]
    made = [result for result in results if not isinstance(result, NetsetupError)]
    return TunnelsRepaired(
        tuple(TunnelMade(tunnel_here(m.tunnel), m.mended, claimed=False) for m in made),
        tuple(errors),
    )


def _tunnel(told: TunnelHere) -> Tunnel:
    """Return our tunnel as netsetup's, as far as its spec needs it."""
    return Tunnel(
        id=told.id,
        end=End(told.end),
        home=home_there(told.home),
        tag=Tag(told.owner, told.job),
        backend=told.backend,
        kind=told.kind,
        local=None if told.local is None else ip_address(told.local),
        remote=None if told.remote is None else ip_address(told.remote),
        key=told.key,
        mtu_bytes=told.mtu_bytes,
        manner=None if told.manner is None else Manner(told.manner),
        guests=told.guests,
    )


async def turn_segment(ctx: AgentContext, request: TurnSegment) -> Turned:
    """Answer `TurnSegment`."""
    network = await ctx.shared.once(open_network)
    with as_host_errors():
        async with arm(network.rtnl, map(turn_of, request.turns)) as turner:
            done = await turner.turn()
    return Turned(tuple(f"{each.mac}: {each.problem}" for each in done if each.problem))


def turn_of(wish: TurnWish) -> Turn:
    """Return what netsetup turns."""
    return Turn(wish.mac, wish.port, wish.vlan)
