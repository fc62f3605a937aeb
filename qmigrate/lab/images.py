"""The `linux` image, built in seconds into a cache, and the QEMU command of a lab guest.

The image is Debian's kernel as its package holds it (nothing is installed) and an initramfs made
here: the modules asked for with what they depend on, static busybox, ``vm-images/linux``. What the
guest does is said in ``vm-images/linux/workload.c``.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from qmigrate.core.errors import UsageError
from qmigrate.lab.cache import cache_directory
from qmigrate.lab.initramfs import Entry, is_static, load_order, pack, unpacked

DOWNLOAD_LIMIT_S = 300.0  # 27 MB over a thin line
COMMAND_LIMIT_S = 60.0  # apt-cache on a slow disk, gcc on a busy machine
MAKER = 1  # part of the cache key: raise it when this code makes another image of the same recipe
KERNEL_DEB = "QMIGRATE_KERNEL_DEB"  # environment: a kernel package that is at hand already


@dataclass(frozen=True, slots=True)
class Flavour:
    """A kernel to take, and the modules that the guest loads from it."""

    name: str
    package: str  # Debian's metapackage
    modules: tuple[str, ...]


CLOUD = Flavour("cloud", "linux-image-cloud-amd64", ("virtio_pci", "virtio_net", "virtio_blk"))
# The cloud kernel has no driver of QEMU's emulated cards and disks.
GENERIC = Flavour(
    "generic",
    "linux-image-amd64",
    (*CLOUD.modules, "e1000", "e1000e", "ahci", "ata_piix", "sd_mod"),
)


@dataclass(frozen=True, slots=True)
class LinuxImage:
    """A built image: two files for ``-kernel`` and ``-initrd``."""

    kernel: Path
    initrd: Path
    kernel_version: str


def recipes() -> Path:
    """Return the directory ``vm-images`` of this checkout, or of the installed package."""
    here = Path(__file__).resolve()
    for place in (here.parent / "vm-images", here.parents[2] / "vm-images"):
        if place.is_dir():
            return place
    raise UsageError(
        "vm-images is neither in the package nor beside it: the installation is broken"
    )


def linux_image(flavour: Flavour = CLOUD, *, newest: bool = False) -> LinuxImage:
    """Return the image from the cache, built first if this recipe is not in it yet.

    Blocks for some seconds when it builds. Builds at the same time are safe: each makes a directory
    of its own, the first to finish names it. A newer kernel is only asked for with `newest`, or
    when the recipe changes. Raises `UsageError` that says what to install.
    """
    cache = cache_directory("images")
    prefix = f"linux-{flavour.name}-{_recipe_hash(flavour)}-"
    if not newest and (built := _newest_in(cache, prefix)):
        return built
    with tempfile.TemporaryDirectory(prefix=".building-", dir=cache) as directory:
        work = Path(directory)
        deb = _kernel_package(flavour, work)
        image = work / "image"
        image.mkdir(mode=0o755)
        version = _build(flavour, deb, work, image)
        place = cache / (prefix + version)
        try:
            image.rename(place)
        except OSError:
            if not (
                place / "initrd"
            ).exists():  # else another build was first, with the same result
                raise
    return _image_at(place, version)


def _newest_in(cache: Path, prefix: str) -> LinuxImage | None:
    found = sorted(cache.glob(f"{prefix}*/initrd"), key=lambda path: path.stat().st_mtime)
    return (
        _image_at(found[-1].parent, found[-1].parent.name.removeprefix(prefix)) if found else None
    )


def _image_at(place: Path, version: str) -> LinuxImage:
    return LinuxImage(place / "vmlinuz", place / "initrd", version)


def _recipe_hash(flavour: Flavour) -> str:
    digest = hashlib.sha256(repr((MAKER, flavour)).encode())
    for path in sorted((recipes() / "linux").iterdir()):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _kernel_package(flavour: Flavour, work: Path) -> Path:
    """Download the package behind the metapackage into `work`; return the file."""
    if given := os.environ.get(KERNEL_DEB):
        return Path(given)
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise UsageError(
                f"no {tool} here, and the guest's kernel is Debian's {flavour.package}",
                next_step=f"fetch the package of that kernel (not the metapackage), install dpkg, "
                f"and set {KERNEL_DEB} to the file",
            )
    depends = _run("apt-cache", "depends", flavour.package, limit_s=COMMAND_LIMIT_S)
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if not found:
        raise UsageError(
            f"apt knows no kernel behind {flavour.package}", next_step="apt-get update"
        )
    # As root apt would drop to its own user, who cannot write here, and complain.
    sandbox = ("-o", "APT::Sandbox::User=root") if os.geteuid() == 0 else ()
    _run("apt-get", *sandbox, "-q", "download", found[1], limit_s=DOWNLOAD_LIMIT_S, cwd=work)
    return next(work.glob("*.deb"))


def _build(flavour: Flavour, deb: Path, work: Path, image: Path) -> str:
    """Make kernel and initramfs in `image`; return the kernel's version."""
    kernel, modules, builtin = _read_kernel_package(deb)
    entries = [Entry(name, 0o40755) for name in ("bin", "dev", "proc", "modules")]
    recipe = recipes() / "linux"
    workload = work / "workload"
    sources = sorted(map(str, recipe.glob("*.c")))
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-pthread")
    _run("gcc", *flags, "-o", str(workload), *sources, limit_s=COMMAND_LIMIT_S)
    entries += [
        Entry("init", 0o100755, (recipe / "init").read_bytes()),
        Entry("bin/busybox", 0o100755, _static_busybox()),
        Entry("bin/workload", 0o100755, workload.read_bytes()),
    ]
    for number, name in enumerate(load_order(flavour.modules, modules, builtin)):
        entries.append(Entry(f"modules/{number:02}-{name}.ko", 0o100644, modules[name]))
    (image / "vmlinuz").write_bytes(kernel[1])
    (image / "initrd").write_bytes(pack(entries))
    return kernel[0]


def _read_kernel_package(deb: Path) -> tuple[tuple[str, bytes], dict[str, bytes], frozenset[str]]:
    """Return version and kernel, all modules by name (with _ for -), and what is built in.

    The package is read as a stream; nothing of it is written anywhere.
    """
    kernel: tuple[str, bytes] | None = None
    modules: dict[str, bytes] = {}
    builtin: frozenset[str] = frozenset()
    command = ("dpkg-deb", "--fsys-tarfile", str(deb))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        with tarfile.open(fileobj=process.stdout, mode="r|") as package:
            for member in package:
                if not (member.isfile() and (file := package.extractfile(member))):
                    continue
                path = Path(member.name)
                if path.name.startswith("vmlinuz-"):
                    kernel = path.name.removeprefix("vmlinuz-"), file.read()
                elif path.name == "modules.builtin":
                    lines = file.read().decode().split()
                    builtin = frozenset(Path(line).stem.replace("-", "_") for line in lines)
                elif found := re.fullmatch(r"(.+)\.ko(\.xz|\.gz)?", path.name):
                    modules[found[1].replace("-", "_")] = unpacked(file.read(), found[2])
    if process.returncode or kernel is None or not modules:
        raise UsageError(f"{deb.name} is not a kernel's package (dpkg-deb: {process.returncode})")
    return kernel, modules, builtin


def _static_busybox() -> bytes:
    found = shutil.which("busybox")
    content = Path(found).read_bytes() if found else b""
    if not is_static(content):
        raise UsageError(
            f"{found or 'busybox'} is not there or not static, and the guest has no libraries",
            next_step="install a static busybox (Debian: busybox-static)",
        )
    return content


def _run(*command: str, limit_s: float, cwd: Path | None = None) -> str:
    try:
        return subprocess.run(
            command, cwd=cwd, timeout=limit_s, check=True, capture_output=True, text=True
        ).stdout
    except FileNotFoundError as exc:
        what = f"no {command[0]} on this machine, and the linux image is made with it"
        raise UsageError(what, next_step=f"install {command[0]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise UsageError(f"{command[0]} did not end within {limit_s:g} s") from exc
    except subprocess.CalledProcessError as exc:
        raise UsageError(
            f"{' '.join(command)} failed with status {exc.returncode}",
            last_words=(exc.stderr or exc.stdout)[-2000:],
            next_step="if packages were not found: apt-get update" if "apt" in command[0] else None,
        ) from exc


def create_disk(path: Path, mib: int = 16) -> Path:
    """Make an empty raw disk, sparse, that must not exist yet; return `path`."""
    with path.open("xb") as file:
        file.truncate(mib << 20)
    return path


@dataclass(frozen=True, slots=True)
class NicSpec:
    """A network card: on the host's tap, or on QEMU's own user network when `tap` is None."""

    mac: str
    tap: str | None = None
    user: str = ""  # options of the user network: "hostfwd=tcp:127.0.0.1:5007-:7,…"
    model: str = "virtio-net-pci"


@dataclass(frozen=True, slots=True)
class LinuxBoot:
    """What the `linux` guest is told on its kernel's command line."""

    image: LinuxImage
    ip4: str | None = None  # with prefix length, of the first card
    ip6: str | None = None
    gateway4: str | None = None
    gateway6: str | None = None
    dirty_mib: int = 0
    dirty_rate_mib: int = 0  # MiB/s; 0: fill once, then stand still
    disk_log: bool = False  # keep a checked log on the first virtio disk
    more: tuple[str, ...] = ()  # other words of the command line: IP4_1=… for a second card


@dataclass(frozen=True, slots=True)
class TinyBoot:
    """The `tiny` guest, from the file that `qmigrate.lab.tiny.image_path` returns."""

    image: Path


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A lab guest as QEMU is to start it."""

    name: str
    uuid: str
    boot: LinuxBoot | TinyBoot
    monitor: str  # path of the QMP socket that QEMU listens on
    memory_mib: int = 128
    machine: str = "q35"
    accelerator: str = "tcg"
    vcpus: int = 1
    nics: tuple[NicSpec, ...] = ()
    disk: str | None = None  # raw image, as a virtio disk with its lock taken
    console: str | None = None  # path of a unix socket; one client at a time
    console_log: str | None = None  # file that gets what the console says as well
    more: tuple[str, ...] = ()  # other arguments of QEMU


KERNEL_MIB = (
    64  # of a linux guest's memory, what kernel, initramfs and workload take (128 - 64: 38)
)


def guest_argv(spec: GuestSpec, *, qemu: str = "qemu-system-x86_64") -> tuple[str, ...]:
    """Return the command line of QEMU for a lab guest, as a user would have written it.

    Raises `UsageError` when the guest would not fit into its memory: it would die of it later.
    """
    argv = [
        *(qemu, "-name", spec.name, "-uuid", spec.uuid),
        *("-no-user-config", "-nodefaults", "-display", "none"),
        *("-machine", spec.machine, "-accel", spec.accelerator),
        *("-smp", str(spec.vcpus), "-m", str(spec.memory_mib)),
        *_boot_arguments(spec),
        *("-qmp", f"unix:{_escaped(spec.monitor)},server=on,wait=off"),
    ]
    for number, nic in enumerate(spec.nics):
        user = f"user,id=net{number}" + (f",{nic.user}" if nic.user else "")
        tap = f"tap,id=net{number},ifname={nic.tap},script=no,downscript=no"
        # No boot ROM of the card: it costs half a second of every start and is never used.
        device = f"{nic.model},netdev=net{number},id=nic{number},mac={nic.mac},romfile="
        argv += ["-netdev", tap if nic.tap else user, "-device", device]
    if spec.disk:
        argv += ["-drive", f"file={_escaped(spec.disk)},format=raw,if=none,id=disk0"]
        argv += ["-device", "virtio-blk-pci,drive=disk0,id=blk0"]
    if spec.console or spec.console_log:
        kind = (
            f"socket,path={_escaped(spec.console)},server=on,wait=off" if spec.console else "null"
        )
        log = f",logfile={_escaped(spec.console_log)},logappend=on" if spec.console_log else ""
        argv += ["-chardev", f"{kind},id=console0{log}", "-serial", "chardev:console0"]
    return (*argv, *spec.more)


def _boot_arguments(spec: GuestSpec) -> tuple[str, ...]:
    match spec.boot:
        case TinyBoot(image):
            return ("-kernel", str(image))
        case LinuxBoot() as boot:
            if boot.dirty_mib + KERNEL_MIB > spec.memory_mib:
                raise UsageError(
                    f"{boot.dirty_mib} MiB to dirty do not fit into {spec.memory_mib} MiB",
                    next_step=f"give it {boot.dirty_mib + KERNEL_MIB} MiB or more",
                )
            files = ("-kernel", str(boot.image.kernel), "-initrd", str(boot.image.initrd))
            return (*files, "-append", kernel_line(spec.name, boot))
        case _:
            assert_never(spec.boot)


def kernel_line(name: str, boot: LinuxBoot) -> str:
    """Return the kernel's command line; ``vm-images/linux/init`` reads the words in capitals."""
    words = {
        "GUEST": name,
        "IP4": boot.ip4,
        "IP6": boot.ip6,
        "GW4": boot.gateway4,
        "GW6": boot.gateway6,
        "DIRTY_MIB": str(boot.dirty_mib),
        "DIRTY_RATE": str(boot.dirty_rate_mib),
        "DISK": "1" if boot.disk_log else None,
    }
    # panic=-1: a guest that dies starts again, and its new boot id tells.
    fixed = ("console=ttyS0", "quiet", "panic=-1", "mitigations=off")
    return " ".join(
        (*fixed, *(f"{key}={value}" for key, value in words.items() if value), *boot.more)
    )


def _escaped(path: str) -> str:
    return path.replace(",", ",,")  # QEMU's own way to have a comma in a value
