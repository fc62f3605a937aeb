"""A tap in a bridge is root's to give: no guest gets one there that it does not have here."""

import pytest

from tests.support.faulting import Faulty

pytestmark = [pytest.mark.net, pytest.mark.qemu, pytest.mark.fault]

# A tap made in a network namespace of one's own, which needs no rights, by the name of another's.
FORGE = """
import fcntl, os, socket, struct, subprocess, sys
ours, theirs = socket.socketpair()
make = '''
import fcntl, os, socket, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", sys.argv[2].encode(), 0x5002))
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [tap])
'''
words = ["unshare", "-n", sys.executable, "-c", make, str(theirs.fileno()), sys.argv[1]]
subprocess.run(words, pass_fds=[theirs.fileno()], check=True)
tap = socket.recv_fds(ours, 1, 1)[1][0]
os.dup2(tap, 9, inheritable=True)
os.execvp(sys.argv[2], sys.argv[2:])
"""
MONITOR = "/run/evil.qmp"
QEMU = (
    *("qemu-system-x86_64", "-name", "evil", "-accel", "tcg", "-m", "32", "-nodefaults"),
    *("-display", "none", "-qmp", f"unix:{MONITOR},server=on,wait=off"),
    *("-device", "virtio-net-pci,netdev=n0", "-netdev", "tap,id=n0,fd=9,vhost=off"),
)


def test_a_guest_is_not_believed_which_bridge_it_hangs_on(faulty: Faulty) -> None:
    site = faulty.site
    site.lab.run("alpha", ["ip", "tuntap", "add", "dev", "their-tap", "mode", "tap"])
    site.undo.callback(site.lab.run, "alpha", ["ip", "link", "del", "their-tap"])
    site.plug("alpha", "their-tap")
    site.start_argv(["python3", "-c", FORGE, "their-tap", *QEMU], "evil", MONITOR)
    checked = site.run("migrate", "evil", "beta", "--json")
    assert checked.code == 3, checked
    assert "in no bridge" in (checked.error or "")
    assert [copy.host for copy in site.copies("evil")] == ["alpha"]
