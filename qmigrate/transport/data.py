"""Data connections beside a link: made, proved by tokens, and handed out as plain sockets.

Whoever accepted the link offers, whoever dialled it dials again, to the same address and port: what
was open for the link is open for these.
"""

import socket

import trio

from qmigrate.core.errors import LinkError, ProtocolError
from qmigrate.transport.connection import GreetingError
from qmigrate.transport.dialling import connect_tcp
from qmigrate.transport.frames import Offer, encode_decline, encode_offer
from qmigrate.transport.link import Link
from qmigrate.transport.passing import prepare_for_qemu
from qmigrate.transport.tokens import Expected, accept_untrusted, show_untrusted

WITHDRAWAL_LIMIT_S = 0.3  # after a failure: for the news that the offer was void; a round trip


class DataSockets:
    """What is expected at our port beside TLS, and how to get there from the other side."""

    def __init__(self) -> None:
        self._expected = Expected()

    async def make(self, link: Link, name: str, deadline_s: float, *, dial: bool) -> socket.socket:
        """Return the proved connection; see `Endpoint.data_socket`."""
        with link.abandoned_when_ended(), trio.move_on_after(deadline_s):
            return await (self._dial(link, name) if dial else self._await(link, name))
        raise LinkError(
            f"data connection {name}: not made within {deadline_s:g} s between {link.local} and"
            f" {link.remote}",
            next_step="the link stands and a second connection to the same port does not come"
            " through: look for a limit of connections in the firewalls between",
        )

    async def _await(self, link: Link, name: str) -> socket.socket:
        awaited = self._expected.add(name)
        number = awaited.offer.number
        made = False
        try:
            with link.told_of_decline(number, awaited.fail):
                link.post(encode_offer(awaited.offer))
                sock = await awaited.result()
                made = True
                return sock
        finally:
            self._expected.remove(awaited)
            awaited.abandon()
            if not made:
                link.post(encode_decline(number, "not waited for any more"))

    async def _dial(self, link: Link, name: str) -> socket.socket:
        while True:
            offer = await link.take_offer(name)
            try:
                return await _show(link, offer)
            except LinkError as exc:
                # The offer may be an earlier attempt's: then its withdrawal is on the way.
                with trio.move_on_after(WITHDRAWAL_LIMIT_S):
                    await link.wait_withdrawn(offer.number)
                    continue
                link.post(encode_decline(offer.number, exc.problem.what))
                raise
            except trio.Cancelled:
                link.post(encode_decline(offer.number, "given up"))
                raise

    async def take_token(self, sock: trio.socket.SocketType) -> None:
        """See to a connection that came with a token; the caller limits the time and closes it."""
        try:
            awaited = await accept_untrusted(sock, self._expected)
            awaited.deliver(_for_qemu(sock))
        except ProtocolError:
            return  # a stranger; or who waits was told


async def _show(link: Link, offer: Offer) -> socket.socket:
    try:
        with await connect_tcp(link.remote) as sock:
            await show_untrusted(sock, offer)
            return _for_qemu(sock)
    except GreetingError as exc:
        raise LinkError(
            f"data connection {offer.name}: {link.remote} {exc.result}",
            next_step="the link to the same port stands: look for a limit of connections in the"
            " firewalls between",
        ) from exc
    except ProtocolError as exc:
        raise LinkError(
            f"data connection {offer.name} to {link.remote}: {exc.problem.what}"
        ) from exc


def _for_qemu(sock: trio.socket.SocketType) -> socket.socket:
    plain = socket.socket(fileno=sock.detach())
    try:
        prepare_for_qemu(plain)
    except OSError as exc:
        plain.close()
        raise ProtocolError(f"the data connection broke: {exc}") from exc
    return plain
