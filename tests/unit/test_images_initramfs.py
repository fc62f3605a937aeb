import shutil
import subprocess
from pathlib import Path

import pytest

from qmigrate.core.errors import UsageError
from qmigrate.lab import cache, images
from qmigrate.lab.images import (
    GuestSpec,
    LinuxBoot,
    LinuxImage,
    NicSpec,
    TinyBoot,
    guest_argv,
    kernel_line,
)
from qmigrate.lab.initramfs import Entry, depends, is_static, load_order, pack


def module(*needs: str) -> bytes:
    return b"\x7fELF...license=GPL\0depends=" + ",".join(needs).encode() + b"\0retpoline=Y\0"


MODULES = {
    "virtio": module(),
    "virtio_ring": module("virtio"),
    "virtio_net": module("virtio-ring", "virtio", "net-failover"),
    "net_failover": module("failover"),
    "failover": module(),
    "sd_mod": module("scsi_mod"),
}


@pytest.mark.skipif(not shutil.which("cpio"), reason="cpio is not installed")
def test_an_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    archive = pack(
        [Entry("bin", 0o40755), Entry("bin/a", 0o100755, b"12345"), Entry("b", 0o100600)]
    )
    assert archive[:6] == b"070701"
    assert len(archive) % 4 == 0
    assert archive == pack(
        [Entry("bin", 0o40755), Entry("bin/a", 0o100755, b"12345"), Entry("b", 0o100600)]
    )
    subprocess.run(["cpio", "-i", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/a").read_bytes() == b"12345"
    assert (tmp_path / "bin/a").stat().st_mode == 0o100755
    assert (tmp_path / "b").stat().st_size == 0


def test_a_module_is_loaded_after_all_that_it_needs() -> None:
    order = load_order(["virtio_net", "virtio"], MODULES, frozenset())
    assert order == ["virtio", "virtio_ring", "failover", "net_failover", "virtio_net"]


def test_what_is_built_in_is_not_loaded() -> None:
    assert load_order(["sd_mod"], MODULES, {"scsi_mod"}) == ["sd_mod"]


def test_a_kernel_without_a_module_is_refused_by_its_name() -> None:
    with pytest.raises(UsageError, match="scsi_mod"):
        load_order(["sd_mod"], MODULES, frozenset())


def test_a_module_without_a_word_on_its_needs_has_none() -> None:
    assert depends(b"\x7fELF") == []
    assert depends(module()) == []


@pytest.mark.parametrize(
    ("program", "static"),
    [(b"", False), (b"#!/bin/sh\n", False), (Path("/proc/self/exe").read_bytes(), False)],
)
def test_a_program_that_needs_a_loader_is_not_static(program: bytes, *, static: bool) -> None:
    assert is_static(program) is static


UUID = "00000000-0000-4000-8000-000000000001"
IMAGE = LinuxImage(Path("/images/vmlinuz"), Path("/images/initrd"), "6.1")


def test_a_linux_guest_is_told_all_on_its_kernel_s_command_line() -> None:
    boot = LinuxBoot(
        IMAGE, "192.0.2.10/24", "2001:db8::10/64", "192.0.2.1", None, 32, 20, disk_log=True
    )
    assert kernel_line("web1", boot) == (
        "console=ttyS0 quiet panic=-1 mitigations=off GUEST=web1 IP4=192.0.2.10/24 "
        "IP6=2001:db8::10/64 GW4=192.0.2.1 DIRTY_MIB=32 DIRTY_RATE=20 DISK=1"
    )


def test_a_guest_s_command_line_is_what_a_user_would_write() -> None:
    spec = GuestSpec(
        "web1",
        UUID,
        LinuxBoot(IMAGE),
        "/run/web1.qmp",
        nics=(NicSpec("52:54:00:00:00:01", "tap1"), NicSpec("52:54:00:00:00:02", user="ipv6=on")),
        disk="/images/a,b.raw",
        console="/run/web1.console",
    )
    line = " ".join(guest_argv(spec))
    for part in (
        "qemu-system-x86_64 -name web1 -uuid " + UUID,
        "-netdev tap,id=net0,ifname=tap1,script=no,downscript=no",
        "-device virtio-net-pci,netdev=net0,id=nic0,mac=52:54:00:00:00:01,romfile=",
        "-netdev user,id=net1,ipv6=on",
        "-drive file=/images/a,,b.raw,format=raw,if=none,id=disk0",
        "-chardev socket,path=/run/web1.console,server=on,wait=off,id=console0",
        "-qmp unix:/run/web1.qmp,server=on,wait=off",
    ):
        assert part in line


def test_a_tiny_guest_needs_no_disk() -> None:
    argv = guest_argv(GuestSpec("t", UUID, TinyBoot(Path("/tiny")), "/q", memory_mib=16))
    assert argv[argv.index("-kernel") + 1] == "/tiny"
    assert "-append" not in argv


def test_more_to_dirty_than_fits_is_refused_before_the_guest_dies_of_it() -> None:
    with pytest.raises(UsageError, match="do not fit") as caught:
        guest_argv(GuestSpec("web1", UUID, LinuxBoot(IMAGE, dirty_mib=100), "/q"))
    assert caught.value.problem.next_step == "give it 164 MiB or more"


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qmigrate"


def test_the_cache_is_for_its_user_alone(private_cache: Path) -> None:
    assert cache.cache_directory("images") == private_cache / "images"
    assert private_cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("break_it", ["others may write", "a link"])
def test_a_cache_that_a_stranger_could_change_is_refused(
    private_cache: Path, break_it: str
) -> None:
    if break_it == "a link":
        private_cache.symlink_to(private_cache.parent)
    else:
        private_cache.mkdir()
        private_cache.chmod(0o777)
    with pytest.raises(UsageError, match=str(private_cache)):
        cache.cache_directory("images")


def test_a_file_is_in_the_cache_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    cache.write_atomically(path, b"one")
    with pytest.raises(TypeError):
        cache.write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"one"


def test_any_change_of_the_recipe_makes_another_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux/init").write_text("a")
    monkeypatch.setattr(images, "recipes", lambda: tmp_path)
    hashes = {images._recipe_hash(images.CLOUD), images._recipe_hash(images.GENERIC)}
    (tmp_path / "linux/init").write_text("b")
    hashes.add(images._recipe_hash(images.CLOUD))
    (tmp_path / "linux/init").rename(tmp_path / "linux/init2")
    hashes.add(images._recipe_hash(images.CLOUD))
    assert len(hashes) == 4


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_a_machine_that_is_no_debian_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(images.shutil, "which", lambda tool: None if tool == missing else "/x")
    with pytest.raises(UsageError, match=f"no {missing} here") as caught:
        images._kernel_package(images.CLOUD, tmp_path)
    assert "QMIGRATE_KERNEL_DEB" in (caught.value.problem.next_step or "")
