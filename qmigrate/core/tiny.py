"""The smallest guest whose memory can be proved: 512 bytes that walk and mark their pages.

QEMU's own migration tests do it this way (tests/qtest/migration: the guest increments the first
byte of every page). One sector boots two ways: by ``-kernel`` (a multiboot header is in it, no disk
needed) and as the first sector of any disk (it ends in 55 aa).

Memory, with n = 256 x MiB pages that are walked::

    0x100000            page 0      first byte: number of passes over it, modulo 256
    ...                 page n-1
    0x100000 + n*4096   ledger      u32 passes completed, u32 LEDGER_MAGIC (little endian)

A pass goes from page 0 to page n-1 and ends by counting itself in the ledger and by sending one
letter on COM1: A, B, ... Z, A, ... So at any instant the first k pages hold passes + 1 and the rest
holds passes: *one* step, at any k. A page that was lost or went back in time makes a second step.
"""

import struct
from dataclasses import dataclass

FIRST_PAGE = 0x100000  # where memory is free of the BIOS on every PC
PAGE_BYTES = 4096
PAGES_PER_MIB = 256
LEDGER_MAGIC = 0x594E4954  # "TINY"
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SECTOR_BYTES = 512

_LOADED_AT = 0x7C00  # where a BIOS puts a boot sector; multiboot is told to do the same
_IDT_AT = 0x1000
_STACK_TOP = 0x7000
_PIT_HZ = 1193182  # the timer's input clock
_LEDGER = struct.Struct("<II")
_MULTIBOOT_MAGIC = 0x1BADB002
_MULTIBOOT_FLAGS = 0x10000  # the addresses in the header are valid: no ELF


@dataclass(frozen=True, slots=True)
class TinySpec:
    """How much memory the guest walks, and how often."""

    mib: int = 1
    hz: int = 50  # passes a second; 0: as fast as it can, never idle

    def __post_init__(self) -> None:
        if not 1 <= self.mib <= 2047:
            raise ValueError(f"tiny walks 1 to 2047 MiB, not {self.mib}")
        if self.hz and not 19 <= self.hz <= 10000:
            raise ValueError(f"the timer ticks at 19 to 10000 Hz, not {self.hz} (0: no pause)")

    @property
    def pages(self) -> int:
        """Pages walked in one pass."""
        return self.mib * PAGES_PER_MIB

    @property
    def region(self) -> tuple[int, int]:
        """Guest-physical address and size in bytes of what `read_marks` wants: pages and ledger."""
        return FIRST_PAGE, (self.pages + 1) * PAGE_BYTES

    @property
    def memory_mib(self) -> int:
        """Least ``-m`` that holds the region and the firmware's own tables above it."""
        return self.mib + 3


DEFAULT = TinySpec()

# One instruction a row: label, bytes, what they say (numbers in hex). {name:2} and {name:4} are the
# absolute address of a label, {name:r} the distance to it in one byte, {name} a value. By hand, as
# no assembler need be on the machine; a test compares the rows with what a disassembler reads.
_LISTING = """
            fa              | cli                       from a BIOS: 16 bits, cs may be 0 or 7c0
            31 c0           | xor ax, ax
            8e d8           | mov ds, ax
            b8 01 24        | mov ax, 2401              the BIOS opens A20
            cd 15           | int 15
            0f 01 16 {gdtr:2} | lgdt [gdtr]
            0f 20 c0        | mov eax, cr0
            0c 01           | or al, 1                  protected mode
            0f 22 c0        | mov cr0, eax
            ea {flat:2} 08 00 | jmp 8:flat
align 4
header:     {multiboot}
kernel:     fa              | cli                       from multiboot: 32 bits, unknown gdt
            0f 01 15 {gdtr:4} | lgdt [gdtr]
            ea {flat:4} 08 00 | jmp 8:flat
flat:       66 b8 10 00     | mov ax, 10
            8e d8           | mov ds, eax
            8e c0           | mov es, eax
            8e d0           | mov ss, eax
            bc {stack}      | mov esp, stack
            b0 11           | mov al, 11                interrupt controller: start again
            e6 20           | out 20, al
            b0 20           | mov al, 20                its interrupts are 20 to 27
            e6 21           | out 21, al
            b0 04           | mov al, 4                 a second one hangs on line 2
            e6 21           | out 21, al
            b0 01           | mov al, 1                 8086 mode
            e6 21           | out 21, al
            b0 fe           | mov al, fe                all masked but the timer
            e6 21           | out 21, al
            fc              | cld
            bf {gates}      | mov edi, gates            gates 20 to 27: 27 is for spurious ones
            b9 08 00 00 00  | mov ecx, 8
gate:       b8 {tick:2} 08 00 | mov eax, 8:tick
            ab              | stosd
            b8 00 8e 00 00  | mov eax, 8e00             present, 32-bit interrupt gate
            ab              | stosd
            e2 {gate:r}     | loop gate
            0f 01 1d {idtr:4} | lidt [idtr]
            b0 34           | mov al, 34                timer: channel 0, rate generator
            e6 43           | out 43, al
            b0 {divisor_low} | mov al, divisor
            e6 40           | out 40, al
            b0 {divisor_high} | mov al, divisor >> 8
            e6 40           | out 40, al
            bf {first}      | mov edi, first
clear:      c6 07 00        | mov byte [edi], 0         a reset keeps memory
            81 c7 00 10 00 00 | add edi, 1000
            81 ff {ledger}  | cmp edi, ledger
            72 {clear:r}    | jb clear
            c7 07 00 00 00 00 | mov dword [edi], 0
            c7 47 04 {magic} | mov dword [edi + 4], magic
            b3 41           | mov bl, 'A'
            66 ba f8 03     | mov dx, 3f8               COM1
pass:       bf {first}      | mov edi, first
page:       fe 07           | inc byte [edi]
            81 c7 00 10 00 00 | add edi, 1000
            81 ff {ledger}  | cmp edi, ledger
            72 {page:r}     | jb page
            ff 07           | inc dword [edi]           the ledger
            88 d8           | mov al, bl
            ee              | out dx, al
            fe c3           | inc bl
            80 fb 5b        | cmp bl, 'Z' + 1
            72 {rest:r}     | jb rest
            b3 41           | mov bl, 'A'
rest:       {rest}          | sti; hlt; cli             or nothing
            eb {pass:r}     | jmp pass
tick:       50              | push eax
            b0 20           | mov al, 20                end of interrupt
            e6 20           | out 20, al
            58              | pop eax
            cf              | iret
align 4
gdt:        00 00 00 00 00 00 00 00 |
            ff ff 00 00 00 9a cf 00 | ; 8: flat code
            ff ff 00 00 00 92 cf 00 | ; 10: flat data
gdtr:       17 00 {gdt:4}   |
idtr:       3f 01 {idt}     | ; gates 0 to 27
"""


def boot_sector(spec: TinySpec = DEFAULT) -> bytes:
    """Return the 512 bytes of the image that `spec` describes."""
    divisor = min(_PIT_HZ // spec.hz, 0xFFFF) if spec.hz else 0
    values = {
        "first": _u32(FIRST_PAGE),
        "ledger": _u32(FIRST_PAGE + spec.pages * PAGE_BYTES),
        "magic": _u32(LEDGER_MAGIC),
        "stack": _u32(_STACK_TOP),
        "idt": _u32(_IDT_AT),
        "gates": _u32(_IDT_AT + 0x20 * 8),
        "divisor_low": bytes([divisor & 0xFF]),
        "divisor_high": bytes([divisor >> 8]),
        "rest": b"\xfb\xf4\xfa" if spec.hz else b"",
    }
    labels: dict[str, int] = {}
    _assemble(values, labels, final=False)  # the first walk only finds where the labels are
    code = _assemble(values, labels, final=True)
    if len(code) > SECTOR_BYTES - 2:
        raise AssertionError(f"{len(code)} bytes do not fit into a boot sector")
    return code.ljust(SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"


def listing() -> list[tuple[str, str]]:
    """Return the rows of the program: its bytes, and what they say (data begins with ``;``)."""
    rows = (line.partition("|") for line in _LISTING.splitlines() if "|" in line)
    return [(code.rpartition(":  ")[2].strip(), words.strip()) for code, _, words in rows]


def _assemble(values: dict[str, bytes], labels: dict[str, int], *, final: bool) -> bytes:
    out = bytearray()
    for line in filter(None, _LISTING.splitlines()):
        if line.startswith("align"):
            out += b"\0" * (-len(out) % int(line.split()[1]))
            continue
        label, _, row = line.partition(": ") if not line.startswith(" ") else ("", "", line)
        if label:
            labels[label] = _LOADED_AT + len(out)
        for token in row.partition("|")[0].split():
            if not token.startswith("{"):
                out += bytes.fromhex(token)
                continue
            name, _, form = token.strip("{}").partition(":")
            if name == "multiboot":
                out += _multiboot_header(labels.get("header", 0), labels.get("kernel", 0))
            elif not form:
                out += values[name]
            elif form == "r":
                here = _LOADED_AT + len(out) + 1
                out += struct.pack("b", labels[name] - here if final else 0)
            else:
                out += labels.get(name, 0).to_bytes(int(form), "little")
    return bytes(out)


def _multiboot_header(at: int, entry: int) -> bytes:
    """Return where it is, load, end of load, end of bss, entry (Multiboot 0.6.96, 3.1.1)."""
    checksum = -(_MULTIBOOT_MAGIC + _MULTIBOOT_FLAGS) & 0xFFFFFFFF
    end = _LOADED_AT + SECTOR_BYTES
    words = (_MULTIBOOT_MAGIC, _MULTIBOOT_FLAGS, checksum, at, _LOADED_AT, end, end, entry)
    return struct.pack("<8I", *words)


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Marks:
    """What the region of a stopped tiny guest says."""

    passes: int  # completed
    step_at: int  # pages of the pass under way that are marked already; 0: between two passes
    problem: str  # why this memory cannot be that of one unbroken run; empty if it can


def read_marks(region: bytes, spec: TinySpec) -> Marks:
    """Judge the bytes of `spec.region`, read while the guest is stopped.

    A copy that is taken while the guest runs may show two steps.
    """
    if len(region) != spec.region[1]:
        return Marks(0, 0, f"{len(region)} bytes of memory instead of {spec.region[1]}")
    passes, magic = _LEDGER.unpack_from(region, spec.pages * PAGE_BYTES)
    if magic != LEDGER_MAGIC:
        return Marks(0, 0, f"no ledger behind the pages: {magic:#x}")
    marks = region[: spec.pages * PAGE_BYTES : PAGE_BYTES]
    old, new = passes % 256, (passes + 1) % 256
    # Marking the last page and counting the pass are two instructions: all pages may be new.
    step_at = len(marks) - len(marks.lstrip(bytes([new])))
    for page, mark in enumerate(marks):
        expected = new if page < step_at else old
        if mark != expected:
            problem = f"page {page} holds {mark} where {expected} belongs (pass {passes})"
            return Marks(passes, step_at, problem)
    return Marks(passes, step_at, "")


def compare_marks(before: Marks, after: Marks) -> str:
    """Say why `after` cannot follow `before` in one run of one guest; empty if it can."""
    if before.problem or after.problem:
        return before.problem or after.problem
    if after.passes < before.passes:  # 2^32 passes at 50 Hz are two years
        return f"the guest went back from pass {before.passes} to {after.passes}"
    return ""


def probe_argv(qemu: str, image: str, accelerator: str) -> tuple[str, ...]:
    """Return the QEMU command that shows whether `accelerator` works: letters on its stdout."""
    return (
        *(qemu, "-no-user-config", "-nodefaults", "-display", "none"),
        *("-machine", "q35", "-accel", accelerator, "-m", "16", "-kernel", image),
        *("-serial", "stdio", "-monitor", "none", "-no-reboot"),
    )


def shows_life(serial: bytes) -> bool:
    """Tell whether COM1 sent three letters in order: the CPU runs, walks and takes interrupts."""
    return LETTERS[:3] in serial
