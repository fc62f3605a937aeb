import re
import shutil
import struct
import subprocess
from dataclasses import replace

import pytest

from qmigrate.core.tiny import (
    LEDGER_MAGIC,
    PAGE_BYTES,
    Marks,
    TinySpec,
    boot_sector,
    compare_marks,
    listing,
    read_marks,
    shows_life,
)
from qmigrate.lab import tiny

ONE = TinySpec(mib=1)


def region(passes: int, step_at: int, *, pages: int = ONE.pages) -> bytearray:
    """Memory as the guest leaves it when it is stopped in front of page `step_at`."""
    memory = bytearray((pages + 1) * PAGE_BYTES)
    for page in range(pages):
        memory[page * PAGE_BYTES] = (passes + (page < step_at)) % 256
    struct.pack_into("<II", memory, pages * PAGE_BYTES, passes, LEDGER_MAGIC)
    return memory


@pytest.mark.parametrize("spec", [TinySpec(), TinySpec(32, 0), TinySpec(2047, 10000)])
def test_the_image_is_a_boot_sector_and_a_multiboot_kernel(spec: TinySpec) -> None:
    image = boot_sector(spec)
    assert len(image) == 512
    assert image[510:] == b"\x55\xaa"
    at = image.index(struct.pack("<I", 0x1BADB002))
    assert at % 4 == 0
    magic, flags, checksum, header, load, load_end, bss_end, entry = struct.unpack_from(
        "<8I", image, at
    )
    assert (magic + flags + checksum) % 2**32 == 0
    assert (header, load, load_end, bss_end) == (0x7C00 + at, 0x7C00, 0x7E00, 0x7E00)
    assert image[entry - 0x7C00] == 0xFA  # cli


def test_a_guest_of_another_size_is_another_image() -> None:
    assert len({boot_sector(TinySpec(mib, hz)) for mib in (1, 2) for hz in (0, 50, 100)}) == 6


@pytest.mark.parametrize(("mib", "hz"), [(0, 50), (2048, 50), (1, 18), (1, 10001), (1, -1)])
def test_a_size_or_rate_that_cannot_be_is_refused(mib: int, hz: int) -> None:
    with pytest.raises(ValueError, match=r"tiny walks|timer ticks"):
        TinySpec(mib, hz)


@pytest.mark.skipif(not shutil.which("objdump"), reason="binutils is not installed")
def test_the_bytes_say_what_the_listing_says(tmp_path) -> None:
    path = tmp_path / "tiny"
    path.write_bytes(boot_sector())
    said = [re.split(r" {2,}", words)[0] for _, words in listing() if words[:1] not in ("", ";")]
    seen = [
        *disassembled(path, "i8086", 0x7C00, 0x7C1C),
        *disassembled(path, "i386", 0x7C3C, 0x7D00),
    ]
    expected = [mnemonic for words in said for mnemonic in mnemonics(words)]
    assert len(expected) > 60
    assert seen[: len(expected)] == expected


def mnemonics(words: str) -> list[str]:
    if words.startswith("sti; hlt; cli"):
        return ["sti", "hlt", "cli"]
    return [words.split()[0]]


def disassembled(path, machine: str, start: int, stop: int) -> list[str]:
    options = ["-D", "-b", "binary", "-m", machine, "-M", "intel", "--adjust-vma=0x7c00"]
    span = [f"--start-address={start:#x}", f"--stop-address={stop:#x}"]
    out = subprocess.run(
        ["objdump", *options, *span, str(path)], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^ +[0-9a-f]+:\t[0-9a-f ]+\t(\w+)", out, re.MULTILINE)
    same = {"stos": "stosd", "lgdtw": "lgdt", "lgdtd": "lgdt", "lidtd": "lidt"}
    return [same.get(word, word) for word in found]


@pytest.mark.parametrize(
    ("passes", "step_at"), [(0, 0), (7, 0), (7, 1), (7, 255), (7, 256), (255, 100), (100_000, 3)]
)
def test_one_step_anywhere_is_an_unbroken_run(passes: int, step_at: int) -> None:
    assert read_marks(bytes(region(passes, step_at)), ONE) == Marks(passes, step_at, "")


@pytest.mark.parametrize("step_at", [0, 100, 256])
@pytest.mark.parametrize("page", [0, 1, 99, 100, 255])
@pytest.mark.parametrize("change", [-1, 1, -3, 128])
def test_a_page_from_another_pass_is_seen(step_at: int, page: int, change: int) -> None:
    memory = region(7, step_at)
    memory[page * PAGE_BYTES] = (memory[page * PAGE_BYTES] + change) % 256
    one_instant_later = change == 1 and page == step_at  # page is just being marked
    one_instant_before = change == -1 and page == step_at - 1
    expected_problem = not (one_instant_later or one_instant_before)
    assert bool(read_marks(bytes(memory), ONE).problem) is expected_problem


def test_memory_without_a_ledger_or_of_another_size_is_no_proof() -> None:
    memory = region(7, 0)
    assert "instead of" in read_marks(bytes(memory[:-1]), ONE).problem
    memory[-PAGE_BYTES + 4] ^= 1
    assert "ledger" in read_marks(bytes(memory), ONE).problem


def test_a_guest_that_went_back_is_seen() -> None:
    before = Marks(10, 3, "")
    assert compare_marks(before, Marks(10, 5, "")) == ""
    assert "went back from pass 10 to 9" in compare_marks(before, Marks(9, 0, ""))
    assert compare_marks(before, Marks(11, 0, "page 3 is wrong")) == "page 3 is wrong"


async def test_verify_reads_the_whole_region_and_tells_what_went_back() -> None:
    asked = []

    async def read(address: int, size: int) -> bytes:
        asked.append((address, size))
        return bytes(region(7, 4))

    assert await tiny.verify(read, ONE) == Marks(7, 4, "")
    assert asked == [(0x100000, 257 * 4096)]
    went_back = await tiny.verify(read, ONE, before=Marks(8, 0, ""))
    assert replace(went_back, problem="") == Marks(7, 4, "")
    assert "went back" in went_back.problem


@pytest.mark.parametrize(
    ("serial", "alive"),
    [(b"", False), (b"SeaBIOS A", False), (b"AB", False), (b"\x1bcABCD", True)],
)
def test_three_letters_in_order_are_life(serial: bytes, *, alive: bool) -> None:
    assert shows_life(serial) is alive
