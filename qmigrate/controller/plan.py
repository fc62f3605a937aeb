"""Facts of both hosts, gathered side by side → a plan and its findings; nothing is touched."""

import os.path
import secrets
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import trio

from qmigrate.agent.requests import (
    DiskProof,
    GetHostFacts,
    GuestList,
    InspectGuest,
    ListGuests,
    ProveDisks,
    SeeDisks,
)
from qmigrate.controller.remote import Agent
from qmigrate.controller.routing import NetworkWish, Routing, routed
from qmigrate.controller.session import one_error
from qmigrate.core.cmdline import Twin, guest_tag, twin
from qmigrate.core.errors import HostError, UsageError
from qmigrate.core.evidence import Facts
from qmigrate.core.finding import name_in_id
from qmigrate.core.images import ImageEvidence, writable_disks
from qmigrate.core.job import FaultPoint, Limits, Mode, Patience, Transport
from qmigrate.core.model import Finding, Guest, GuestDetail, HostFacts, HostSpec
from qmigrate.core.network import AUTO
from qmigrate.core.network_rules import Route
from qmigrate.core.preflight import preflight

PROOF_DEADLINE_S = 30.0  # for two looks at shared storage, each with a deadline of its own


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for."""

    guest: str
    destination: HostSpec
    sources: tuple[HostSpec, ...]  # where to look for it
    mode: Mode = Mode.LIVE
    limits: Limits = field(default_factory=Limits)
    force: frozenset[str] = frozenset()
    stop_unit: bool = False
    addresses: tuple[tuple[str, str], ...] = ()  # address, who said so: "option", "inventory"
    bridges: tuple[tuple[str, str], ...] = ()  # source's name, destination's
    faults: tuple[FaultPoint, ...] = ()  # for tests only
    patience: Patience = field(default_factory=Patience)
    tunnel: str = AUTO  # a kind of tunnel, AUTO or NONE
    hosts: tuple[HostSpec, ...] = ()  # of the inventory: one of them may be the guest's home
    transport: Transport = Transport.DIRECT

    @property
    def network(self) -> NetworkWish:
        """What of it concerns the network."""
        return NetworkWish(self.tunnel, self.bridges, self.hosts)


@dataclass(frozen=True, slots=True)
class Plan:
    """A move as it would be done, and what preflight says of it."""

    job: str
    wish: Wish
    source: HostSpec
    detail: GuestDetail
    source_facts: HostFacts
    destination_facts: HostFacts
    twin: Twin
    findings: tuple[Finding, ...]
    routes: tuple[Route, ...] = ()

    @property
    def guest(self) -> Guest:
        """The guest that is to move."""
        return self.detail.guest

    @property
    def images(self) -> tuple[str, ...]:
        """The images that the guest writes to, by absolute path."""
        return _written_to(self.detail)


def new_job_id(guest: str) -> str:
    """Return an id that people can say and that is nobody else's."""
    return f"{name_in_id(guest)}-{secrets.token_hex(3)}"


async def find_source(name: str, agents: Sequence[Agent]) -> Agent:
    """Return the agent of the one host that has the guest `name`.

    Raises `UsageError` if none has it or more than one.
    """
    having: list[Agent] = []

    async def look(agent: Agent) -> None:
        guests = (await agent.call(ListGuests())).guests
        if any(name in (guest.name, guest.uuid, str(guest.pid)) for guest in guests):
            having.append(agent)

    async with trio.open_nursery() as nursery:
        for agent in agents:
            nursery.start_soon(look, agent)
    if len(having) == 1:
        return having[0]
    looked = ", ".join(agent.host for agent in agents) or "no host"
    if not having:
        raise UsageError(
            f"there is no guest {name} (looked on: {looked})",
            next_step="qmigrate list shows what there is; --from HOST says where to look",
        )
    hosts = " and ".join(agent.host for agent in having)
    raise UsageError(f"{name} is on {hosts}", next_step="say which with --from HOST")


async def make_plan(
    wish: Wish, source: Agent, spec: HostSpec, destination: Agent, routing: Routing
) -> Plan:
    """Gather all that preflight wants to know, and judge."""
    detail: GuestDetail
    source_facts: HostFacts
    there: GuestList

    missing: UsageError | None = None

    async def ask_source() -> None:
        nonlocal detail, missing
        try:
            detail = await source.call(InspectGuest(wish.guest))
        except UsageError as exc:
            missing = exc

    async def ask_source_host() -> None:
        nonlocal source_facts
        source_facts = await source.call(GetHostFacts(accelerator="tcg"))  # it runs there already

    async def ask_destination() -> None:
        nonlocal there
        there = await destination.call(ListGuests())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_source)
        nursery.start_soon(ask_source_host)
        nursery.start_soon(ask_destination)
        nursery.start_soon(routing.look)
    if missing is not None:
        raise _already_there(wish, there) or missing
    process = detail.process
    job = new_job_id(detail.guest.name or wish.guest)
    compared: list[tuple[HostFacts, Twin, tuple[ImageEvidence, ...]]] = []

    async def compare() -> None:
        destination_facts = await destination.call(
            GetHostFacts(
                qemu=detail.guest.executable,
                users=(process.user,),
                groups=tuple(dict.fromkeys((process.group, *process.groups))),
                accelerator=detail.guest.accelerator,
            )
        )
        made = twin(
            detail,
            host=spec.name,
            executable=destination_facts.qemu_path or detail.guest.executable,
            bridges=dict(wish.bridges),
        )
        images = await _prove_images(detail, made, source, destination)
        compared.append((destination_facts, made, images))

    async def find_routes() -> None:
        await routing.find(detail, tag=guest_tag(detail), job=job)

    with one_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(compare)
            nursery.start_soon(find_routes)
    destination_facts, made, images = compared[0]
    made = routed(made, routing.routes)
    private = {route.bridge for route in routing.routes if route.tunnel is not None}
    facts = Facts(
        detail=detail,
        source_name=spec.name,
        source=source_facts,
        destination_name=wish.destination.name,
        destination=destination_facts,
        destination_guests=there.guests,
        plan_findings=(*made.findings, *routing.findings()),
        bridges=tuple(t.bridge for t in made.plan.taps if t.bridge not in private),
        images=images,
        stop_unit=wish.stop_unit,
    )
    return Plan(
        job=job,
        wish=wish,
        source=spec,
        detail=detail,
        source_facts=source_facts,
        destination_facts=destination_facts,
        twin=made,
        findings=preflight(facts, force=wish.force),
        routes=routing.routes,
    )


def _already_there(wish: Wish, there: GuestList) -> UsageError | None:
    """Return what to say if the guest is where it should go, and nowhere else."""
    if not any(wish.guest in (guest.name, guest.uuid) for guest in there.guests):
        return None
    return UsageError(
        f"{wish.guest} is on {wish.destination.name} already",
        next_step="qmigrate list shows where every guest runs",
    )


async def _prove_images(
    detail: GuestDetail, made: Twin, source: Agent, destination: Agent
) -> tuple[ImageEvidence, ...]:
    """Have one host leave nonces and the other look for them."""
    cwd = detail.process.cwd

    disks = detail.guest.disks
    writable = _written_to(detail)
    others = [d.path for d in disks if d.path and d.read_only]
    others += [path for disk in disks for path in disk.backing]
    others += [*made.files, cwd]
    absolute = (_absolute(cwd, path) for path in others)
    files = tuple(path for path in dict.fromkeys(absolute) if path not in writable)
    with trio.move_on_after(PROOF_DEADLINE_S):
        async with aclosing(source.stream(ProveDisks(writable, files))) as proofs:
            async for told in proofs:
                seen = await destination.call(SeeDisks(told.proofs))
                return tuple(
                    _evidence(here, there, writable=here.path in writable)
                    for here, there in zip(told.proofs, seen.proofs, strict=True)
                )
    raise HostError(f"the guest's images could not be compared within {PROOF_DEADLINE_S:g} s")


def _absolute(cwd: str, path: str) -> str:
    return os.path.normpath(os.path.join(cwd, path))  # noqa: PTH118 - the guest's, not ours


def _written_to(detail: GuestDetail) -> tuple[str, ...]:
    """Return the images that the guest writes to, by absolute path, each once."""
    cwd = detail.process.cwd
    disks = writable_disks(detail.guest.disks)
    return tuple(dict.fromkeys(_absolute(cwd, disk.path) for disk in disks if disk.path))


def _evidence(here: DiskProof, there: DiskProof, *, writable: bool) -> ImageEvidence:
    known = here.identity is not None and there.identity is not None
    same = here.identity == there.identity if known else None
    # A block device has no directory to leave a nonce in: its identifier is the proof.
    shared = there.seen if here.nonce is not None else same
    return ImageEvidence(
        path=here.path,
        writable=writable,
        source_size_bytes=here.size_bytes,
        destination_size_bytes=there.size_bytes,
        shared=shared,
        same_identity=same,
        problem=here.problem or there.problem,
    )
