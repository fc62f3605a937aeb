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
                next_step=f"fetch that kernel's package (linux-image-6...-{flavour.name}-amd64, not "
                f"the metapackage), install dpkg, and set {KERNEL_DEB} to the file",
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
