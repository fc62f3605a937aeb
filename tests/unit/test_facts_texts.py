"""The kernel's and QEMU's texts, as recorded, and what is read out of them."""

import pytest

from qmigrate.agent.binary import machine_types, version_of
from qmigrate.agent.host import global_ipv4, global_ipv6, memory_available_bytes
from qmigrate.core.errors import HostError

# cat /proc/net/fib_trie, one table of two
FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
     +-- 169.254.0.0/16 2 0 2
        |-- 169.254.7.7
           /32 host LOCAL
     +-- 192.0.2.0/30 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.2
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
"""

# cat /proc/net/if_inet6
IF_INET6 = """\
fd000000000000000000000000000002 02 40 00 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000fc54b3fffe000001 02 40 20 80     eth0
20010db8000000000000000000000001 02 40 00 40     eth0
20010db8000000000000000000000002 02 40 00 88     eth0
"""

# qemu-system-x86_64 -machine help
MACHINES = """\
Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-10.0)
pc-i440fx-10.0       Standard PC (i440FX + PIIX, 1996) (default)
pc-q35-8.1           Standard PC (Q35 + ICH9, 2009) (deprecated)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)
none                 empty machine
"""


def test_addresses_beyond_the_link_are_given_once_each() -> None:
    assert global_ipv4(FIB_TRIE + FIB_TRIE.replace("Main", "Local")) == ("192.0.2.2",)


def test_addresses_that_are_not_usable_yet_or_for_others_are_left_out() -> None:
    assert global_ipv6(IF_INET6) == ("fd00::2",)


def test_an_alias_is_no_machine_type_as_it_means_another_elsewhere() -> None:
    assert machine_types(MACHINES) == ("microvm", "pc-i440fx-10.0", "pc-q35-8.1")


def test_memory_is_what_a_new_process_can_have() -> None:
    assert memory_available_bytes("MemFree: 1 kB\nMemAvailable:  2048 kB\n") == 2 << 20
    assert memory_available_bytes("MemFree: 1 kB\n") is None


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n", "10.0.2"),
        ("QEMU emulator version 9.2.50 (v9.2.0-1-g1)\n", "9.2.50"),
        ("QEMU emulator version 11.1\n", "11.1"),
    ],
)
def test_the_version_is_the_number_alone(said: str, version: str) -> None:
    assert version_of(said, "qemu") == version


def test_what_says_no_version_is_no_qemu() -> None:
    with pytest.raises(HostError, match="does not say its version"):
        version_of("hello\n", "qemu")
