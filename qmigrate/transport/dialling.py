"""TCP to one address, with the failure told in the words of `reach`."""

import socket

import trio

from qmigrate.core.model import Address
from qmigrate.transport.connection import GreetingError
from qmigrate.transport.passing import prepare_for_link
from qmigrate.transport.reach import Dial

DIAL_LIMIT_S = 1.0  # for TCP's three packets; a lost SYN is sent again after a second anyway


async def connect_tcp(address: Address) -> trio.socket.SocketType:
    """Return a connected socket with the link's options; raises `GreetingError`."""
    sock = trio.socket.socket(_family(address), socket.SOCK_STREAM)
    connected = False
    try:
        prepare_for_link(sock)
        with trio.move_on_after(DIAL_LIMIT_S):
            await sock.connect((address.host, address.port))
            connected = True
            return sock
        raise GreetingError(Dial.SILENT, f"no answer within {DIAL_LIMIT_S:g} s")
    except ConnectionRefusedError as exc:
        raise GreetingError(Dial.REFUSED, str(exc)) from exc
    except TimeoutError as exc:
        raise GreetingError(Dial.SILENT, str(exc)) from exc
    except OSError as exc:
        raise GreetingError(Dial.NO_ROUTE, str(exc)) from exc
    finally:
        if not connected:
            sock.close()


def local_host(address: Address) -> str | None:
    """Return the address of ours that the kernel would dial from; sends nothing."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address.host, address.port))
        except OSError:
            return None
        host: str = probe.getsockname()[0]
        return host


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET
