"""Network backends of the guest, rewritten: every tap and bridge becomes a tap made there."""

from collections.abc import Iterator

from qmigrate.core.argv import Option, Opts
from qmigrate.core.guestline import opts_of
from qmigrate.core.job import TapPlan, tap_token
from qmigrate.core.model import GuestDetail, Nic
from qmigrate.core.rewriting import Work, keep

_HELPER_KEYS = ("br", "helper", "script", "downscript", "fd", "fds", "vhostfd", "vhostfds")


def netdev(work: Work, option: Option) -> Iterator[tuple[Option | None, str]]:
    """Map -netdev, -nic and -net alike: they share the backend's keys."""
    opts = opts_of(option)
    kind = opts.get("type")
    if kind in ("none", "hubport", None) or (option.flag == "net" and kind == "nic"):
        yield from keep(work, option)
        return
    if kind == "user":
        work.warn(
            f"-{option.flag} user: connections that are open through QEMU's own network end",
            "use a tap in a bridge where they must survive",
        )
        yield from keep(work, option)
        return
    if kind not in ("tap", "bridge"):
        work.refuse(
            f"-{option.flag} {kind}: its other end stays on this host",
            "attach the guest to a bridge by a tap",
        )
        yield option, "kept"
        return
    yield _tapped(work, option, opts), "a tap made there, in the same bridge"


def _tapped(work: Work, option: Option, opts: Opts) -> Option:
    number, work.nic_number = work.nic_number, work.nic_number + 1
    netdev = opts.get("id") or f"{option.flag}{number}"
    nic = _nic_of(work.detail, netdev, opts, number)
    bridge = nic.bridge if nic else None  # what the line says of it, anybody can say
    if bridge is None:
        work.refuse(
            f"network card {netdev} hangs on {nic.tap if nic and nic.tap else 'a tap'}, which is "
            "in no bridge",
            "put its tap into a bridge that the destination has too",
        )
        bridge = ""
    queues = int(opts.get("queues") or 1)
    queues = max(queues, *(len((opts.get(k) or "").split(":")) for k in ("fds", "vhostfds")))
    work.taps.append(
        TapPlan(
            netdev=netdev,
            wanted=nic.tap if nic else opts.get("ifname"),
            bridge=work.bridges.get(bridge, bridge),
            mac=nic.mac if nic else opts.get("mac"),
            queues=queues,
        )
    )
    new = option.without(*_HELPER_KEYS)
    if opts.get("type") == "bridge":
        new = new.put("type", "tap")
    if opts.get("vhostfd") or opts.get("vhostfds"):
        new = new.put("vhost", "on")
    if queues > 1 and not opts.get("queues"):
        new = new.put("queues", str(queues))
    new = new.put("ifname", tap_token(netdev))
    return new.put("script", "no").put("downscript", "no")


def _nic_of(detail: GuestDetail, netdev: str, opts: Opts, number: int) -> Nic | None:
    nics = [nic for nic in detail.guest.nics if nic.backend in ("tap", "bridge", None)]
    by_id = [nic for nic in nics if nic.netdev == netdev]
    by_tap = [nic for nic in nics if nic.tap is not None and nic.tap == opts.get("ifname")]
    in_order = nics[number : number + 1]
    return next(iter((*by_id, *by_tap, *in_order)), None)
