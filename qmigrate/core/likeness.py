"""Is the twin the guest's twin? QEMU itself accepts a wrong one silently (facts: trap 8).

Both QEMUs were asked over QMP before a byte moves; what differs is a blocker a line. What QEMU
would refuse by itself (another machine, other RAM blocks) is named here in better words.
"""

from collections.abc import Iterable, Iterator

from qmigrate.core.model import Finding, Severity, Shape

RULE = "twin-differs"
_SHOWN = 4  # of a long list of differences; the rest is counted


def differences(source: Shape, twin: Shape, *, host: str) -> Iterator[Finding]:
    """Yield a blocker for each kind of difference; `host` is the destination's name."""
    if source.machine != twin.machine:
        yield _finding(host, f"machine type {source.machine} there is {twin.machine}")
    if len(source.cpus) != len(twin.cpus):
        yield _finding(host, f"{len(source.cpus)} vCPUs there are {len(twin.cpus)}")
    else:
        yield from _cpus(source, twin, host)
    yield from _pairs(
        host,
        "RAM block",
        _by_name((block.name, f"{block.size_bytes} bytes") for block in source.ram),
        _by_name((block.name, f"{block.size_bytes} bytes") for block in twin.ram),
    )
    yield from _pairs(
        host,
        "device at",
        _by_name((device.place, device.type) for device in source.devices),
        _by_name((device.place, device.type) for device in twin.devices),
    )
    yield from _pairs(host, "MAC of", _by_name(source.macs), _by_name(twin.macs))
    yield from _pairs(
        host,
        "disk",
        _by_name((device, f"{size} bytes") for device, size in source.disks),
        _by_name((device, f"{size} bytes") for device, size in twin.disks),
    )


def _cpus(source: Shape, twin: Shape, host: str) -> Iterator[Finding]:
    for number, (here, there) in enumerate(zip(source.cpus, twin.cpus, strict=True)):
        if here.type != there.type:
            yield _finding(host, f"vCPU {number} is {here.type}, there {there.type}")
            return
        if here.features != there.features:
            words = [
                f"word {index}: {mine:08x}, there {theirs:08x}"
                for index, (mine, theirs) in enumerate(
                    zip(here.features, there.features, strict=False)
                )
                if mine != theirs
            ] or [f"{len(here.features)} feature words, there {len(there.features)}"]
            yield _finding(host, f"vCPU {number} has other CPUID features: {_some(words)}")
            return


def _by_name(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return what stands at each name; a name may stand for several (a bus without slots)."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {name: " and ".join(sorted(values)) for name, values in found.items()}


def _pairs(host: str, kind: str, here: dict[str, str], there: dict[str, str]) -> Iterator[Finding]:
    words = [f"{kind} {name} is missing there ({here[name]})" for name in here.keys() - there]
    words += [f"{kind} {name} is only there ({there[name]})" for name in there.keys() - here]
    words += [
        f"{kind} {name} is {here[name]}, there {there[name]}"
        for name in here.keys() & there.keys()
        if here[name] != there[name]
    ]
    if words:
        yield _finding(host, _some(sorted(words)))


def _some(words: list[str]) -> str:
    more = f"; and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return "; ".join(words[:_SHOWN]) + more


def _finding(host: str, message: str) -> Finding:
    return Finding(
        RULE,
        Severity.BLOCKER,
        host,
        f"the QEMU started there is not the guest's twin: {message}",
        "give both hosts the same images and QEMU options; if you did, this is a defect of ours",
    )
