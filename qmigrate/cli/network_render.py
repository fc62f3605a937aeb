"""Tunnels of several hosts as lines for people and as JSON's plain objects."""

from typing import Any

from qmigrate.core.network import TunnelHere, Verdict
from qmigrate.core.tunnel_pairs import EndOn, TunnelRow


def row_lines(row: TunnelRow, verdict: Verdict | None) -> list[str]:
    """Return what people read of a tunnel."""
    one = row.ends[0].tunnel
    away = row.away.host if row.away else (one.remote if one.end == "home" else one.local)
    lines = [f"{row.id}  {one.described}  {one.home} to {away}"]
    taps = row.away.tunnel.taps if row.away else ()
    needed = ", ".join((*row.guests, *taps))
    lines.append(f"  needed by {needed}" if needed else "  nobody needs it")
    if verdict is not None:
        lines.append(f"  {verdict.adjacency.replace('-', ' ')}: {verdict.why}")
    lines += [f"  wrong: {problem}" for problem in row.problems]
    return lines


def row_document(row: TunnelRow, verdict: Verdict | None) -> dict[str, Any]:
    """Return the same for programs."""
    from dataclasses import asdict

    return {
        "id": row.id,
        "guests": list(row.guests),
        "ends": [_end(end) for end in row.ends],
        "problems": list(row.problems),
        "verdict": None if verdict is None else asdict(verdict),
    }


def _end(end: EndOn) -> dict[str, Any]:
    tunnel: TunnelHere = end.tunnel
    return {
        "host": end.host,
        "end": tunnel.end,
        "home": {
            "host": tunnel.home.host,
            "bridge": tunnel.home.bridge,
            "vlan": tunnel.home.vlan,
        },
        "tunnel": tunnel.described,
        "local": tunnel.local,
        "remote": tunnel.remote,
        "key": tunnel.key,
        "mtu_bytes": tunnel.mtu_bytes,
        "port": tunnel.port,
        "bridge": tunnel.bridge,
        "guests": list(tunnel.guests),
        "taps": list(tunnel.taps),
        "job": tunnel.job,
        "problems": list(tunnel.problems),
        "notes": list(tunnel.notes),
    }
