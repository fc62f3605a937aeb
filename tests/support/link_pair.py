"""Both sides of a link in one process over loopback, and strangers to test them with."""

import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from qmigrate.controller.keys import JobKeys, _make_keys
from qmigrate.core.model import Address, Side
from qmigrate.core.secret import Identity, Secret
from qmigrate.transport.endpoint import Endpoint, EndpointSpec, open_endpoint
from qmigrate.transport.link import Link

T = TypeVar("T")
DEADLINE_S = 10.0  # for what takes milliseconds, on a loaded machine


@cache
def job_keys(job: str = "job-1") -> JobKeys:
    """Return the keys of `job`, made once a test run."""
    return _make_keys(job)


def source_spec(**changes: object) -> EndpointSpec:
    spec = EndpointSpec(job_keys().source, Side.SOURCE, "job-1", "boot-a", ("127.0.0.1",))
    return replace(spec, **changes)


def destination_spec(**changes: object) -> EndpointSpec:
    spec = EndpointSpec(job_keys().destination, Side.DESTINATION, "job-1", "boot-b", ("127.0.0.1",))
    return replace(spec, **changes)


async def both(first: Callable[[], Awaitable[T]], second: Callable[[], Awaitable[T]]) -> list[T]:
    """Run two calls side by side and return what they return, in order; errors come out bare."""
    results: dict[int, T] = {}

    async def run(index: int, call: Callable[[], Awaitable[T]]) -> None:
        results[index] = await call()

    with bare_errors():
        async with trio.open_nursery() as nursery:
            for index, call in enumerate((first, second)):
                nursery.start_soon(run, index, call)
    return [results[0], results[1]]


@contextmanager
def bare_errors() -> Iterator[None]:
    """Take an only error out of the group that a nursery makes of it."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


@dataclass
class Pair:
    """Two endpoints that know each other, and their links."""

    source: Endpoint
    destination: Endpoint
    a: Link
    b: Link

    async def reconnect(self) -> None:
        self.a, self.b = await both(
            lambda: self.source.connect(DEADLINE_S), lambda: self.destination.connect(DEADLINE_S)
        )

    async def data_sockets(self, name: str) -> list[socket.socket]:
        return await both(
            lambda: self.source.data_socket(self.a, name, DEADLINE_S),
            lambda: self.destination.data_socket(self.b, name, DEADLINE_S),
        )


@asynccontextmanager
async def endpoints(
    source: EndpointSpec | None = None, destination: EndpointSpec | None = None
) -> AsyncIterator[tuple[Endpoint, Endpoint]]:
    """Open both sides; nobody knows anybody yet."""
    with bare_errors():
        async with (
            trio.open_nursery() as nursery,
            open_endpoint(source or source_spec(), nursery) as a,
            open_endpoint(destination or destination_spec(), nursery) as b,
        ):
            yield a, b


@asynccontextmanager
async def linked() -> AsyncIterator[Pair]:
    """Open both sides and link them; the source dials."""
    async with endpoints() as (source, destination):
        source.set_peer(destination.addresses)
        destination.set_peer(source.addresses)
        a, b = await both(
            lambda: source.connect(DEADLINE_S), lambda: destination.connect(DEADLINE_S)
        )
        yield Pair(source, destination, a, b)


@dataclass
class Proxy:
    """A wire that can be cut, held and spoilt between a dialler and `target`."""

    address: Address
    target: Address
    scope: trio.CancelScope
    held: trio.Event
    accepted: int = 0
    spoil_after: int | None = None  # flip a bit of this byte of what flows back

    def cut(self) -> None:
        """Reset every connection; new ones are accepted."""
        scope, self.scope = self.scope, trio.CancelScope()
        scope.cancel()

    def hold(self) -> None:
        """Let nothing through any more and say nothing: a dead wire."""
        self.held = trio.Event()


@asynccontextmanager
async def proxy(target: Address) -> AsyncIterator[Proxy]:
    """Listen on loopback and carry what comes to `target`."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    address = Address(*listener.socket.getsockname()[:2])
    flowing = trio.Event()
    flowing.set()
    wire = Proxy(address, target, trio.CancelScope(), flowing)

    async def carry(front: trio.SocketStream) -> None:
        wire.accepted += 1
        back = await trio.open_tcp_stream(target.host, target.port)
        try:
            with wire.scope:
                async with trio.open_nursery() as nursery:
                    for frm, to, spoiled in ((front, back, False), (back, front, True)):
                        nursery.start_soon(pump, frm, to, spoiled, nursery.cancel_scope)
        finally:
            for stream in (front, back):
                linger = (1).to_bytes(4, "little") + bytes(4)  # RST instead of FIN
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                stream.socket.close()

    async def pump(
        frm: trio.SocketStream, to: trio.SocketStream, spoiled: bool, scope: trio.CancelScope
    ) -> None:
        count = 0
        try:
            async for chunk in frm:
                await wire.held.wait()
                out = bytearray(chunk)
                at = wire.spoil_after
                if spoiled and at is not None and count <= at < count + len(out):
                    out[at - count] ^= 1
                count += len(out)
                await to.send_all(out)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await wire.held.wait()  # a dead wire does not tell of ends either
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, carry, [listener])
        yield wire
        nursery.cancel_scope.cancel()


def pair_signed_by(issuer: ec.EllipticCurvePrivateKey, name: str) -> tuple[str, Secret[str]]:
    """Return a certificate that `issuer` signed for another key: what a pin must refuse."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = _build(key.public_key(), issuer, f"{name} child", name, now, ca=False)
    return _pem(certificate), _key_pem(key)


def authority(name: str, *, expired: bool = False) -> tuple[ec.EllipticCurvePrivateKey, str]:
    """Return a self-signed CA:TRUE pair, as a careless version of ours might make it."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=400 if expired else 0)
    return key, _pem(_build(key.public_key(), key, name, name, now, ca=True))


def _build(
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    subject: str,
    issuer: str,
    now: datetime.datetime,
    *,
    ca: bool,
) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> Secret[str]:
    return Secret(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
    )


def key_of(key: ec.EllipticCurvePrivateKey) -> Secret[str]:
    return _key_pem(key)


def stranger_context(identity: Identity | None, *, tls12: bool = False) -> ssl.SSLContext:
    """Return a client's context that trusts anybody and shows `identity`'s certificate, if any."""
    from qmigrate.transport.identity import client_context

    if identity is not None:
        context = client_context(identity)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if tls12:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@contextmanager
def open_descriptors() -> Iterator[Callable[[], set[str]]]:
    """Yield a function that returns the sockets opened since, as the kernel numbers them."""
    before = _sockets()
    yield lambda: _sockets() - before


def _sockets() -> set[str]:
    from pathlib import Path

    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
