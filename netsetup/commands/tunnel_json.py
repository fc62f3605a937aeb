"""A tunnel's end as JSON and back: what one host prints, another can be told; pure."""

from ipaddress import ip_address
from typing import Any

from netsetup.errors import UsageError
from netsetup.homes import parse_home
from netsetup.mtu import Manner
from netsetup.tunnel_spec import End, Tag, Tunnel

LIST_SCHEMA = "netsetup.tunnels/1"


def to_json(tunnel: Tunnel) -> dict[str, Any]:
    """Return the tunnel's end as what JSON has; unknown is None."""
    return {
        "id": tunnel.id,
        "end": tunnel.end,
        "home": str(tunnel.home),
        "owner": tunnel.tag.owner,
        "job": tunnel.tag.job,
        "kind": tunnel.kind,
        "backend": tunnel.backend,
        "local": None if tunnel.local is None else str(tunnel.local),
        "remote": None if tunnel.remote is None else str(tunnel.remote),
        "key": tunnel.key,
        "udp_port": tunnel.udp_port,
        "mtu_bytes": tunnel.mtu_bytes,
        "manner": tunnel.manner,
        "isolated": tunnel.isolated,
        "port": tunnel.port,
        "bridge": tunnel.bridge,
        "guests": list(tunnel.guests),
        "taps": list(tunnel.taps),
        "problems": list(tunnel.problems),
        "notes": list(tunnel.notes),
        "path_mtu_bytes": tunnel.path_mtu_bytes,
        "reversed_header": tunnel.reversed_header,
    }


def from_json(fields: Any) -> Tunnel:
    """Return the tunnel's end that `to_json` made `fields` of; raise `UsageError`."""
    try:
        manner = fields["manner"]
        local, remote = (
            None if fields[name] is None else ip_address(fields[name])
            for name in ("local", "remote")
        )
        return Tunnel(
            id=_word(fields["id"]),
            end=End(fields["end"]),
            home=parse_home(_word(fields["home"])),
            tag=Tag(_word(fields["owner"]), _word(fields["job"])),
            kind=fields["kind"],
            backend=_word(fields["backend"]),
            local=local,
            remote=remote,
            key=fields["key"],
            udp_port=fields["udp_port"],
            mtu_bytes=fields["mtu_bytes"],
            manner=None if manner is None else Manner(manner),
            isolated=fields["isolated"],
            port=fields["port"],
            bridge=fields["bridge"],
            guests=tuple(_word(guest) for guest in fields["guests"]),
            taps=tuple(_word(tap) for tap in fields["taps"]),
            path_mtu_bytes=fields.get("path_mtu_bytes"),
            reversed_header=bool(fields.get("reversed_header")),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise UsageError(f"this is no tunnel of `netsetup tunnel list --json`: {exc!r}") from exc


def tunnels_from_json(document: Any) -> tuple[Tunnel, ...]:
    """Return the tunnels in what `netsetup tunnel list --json` printed; raise `UsageError`."""
    if not isinstance(document, dict) or document.get("schema") != LIST_SCHEMA:
        raise UsageError(
            f"this is not what `netsetup tunnel list --json` prints: its schema is {LIST_SCHEMA}"
        )
    tunnels = document.get("tunnels")
    if not isinstance(tunnels, list):
        raise UsageError("there is no list of tunnels in it")
    return tuple(from_json(each) for each in tunnels)


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
