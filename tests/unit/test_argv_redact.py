"""No secret of a command line is shown, and what is no secret keeps its spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmigrate.core.redact import redact


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("-object", "secret,id=s,data=hunter2,format=raw"),
        ("-object", '{"qom-type": "secret", "id": "s", "data": "hunter2"}'),
        ("-object", "{'qom-type': 'secret', 'data': 'hunter2'}"),
        ("-spice", "port=1,password=hunter2"),
        ("-iscsi", "user=me,password=hunter2"),
        ("-drive", "file=iscsi://me%hunter2@host/iqn/1,if=none"),
        ("-drive", "file=https://me:hunter2@host/a.img,if=none"),
        ("-hda", "https://me:hunter2@host/a.img"),
        ("-drive", "file=rbd:pool/img:id=me:key=hunter2,if=none"),
        ("-drive", 'file=json:{"driver":"https",,"cookie":"hunter2"}'),
        ("-blockdev", '{"driver": "https", "url": "https://h/", "cookie": "hunter2"}'),
        ("-drive", "file.driver=ssh,file.password=hunter2"),
        ("-fw_cfg", "name=opt/com.coreos/config,string=hunter2"),
        ("-fw_cfg", "opt/x,string=hunter2"),
        ("-smbios", "type=11,value=io.systemd.credential:passwd.hashed-password.root=hunter2"),
        ("-append", "root=/dev/vda luks.password=hunter2 quiet"),
        ("-append", 'root=/dev/vda token="a hunter2"'),
        ("-object", '{"qom-type": "secret", "data": "hunter2"'),
    ],
)
def test_the_secret_is_gone_and_the_rest_is_there(flag: str, value: str) -> None:
    shown = redact(["qemu", "-name", "a", flag, value, "-S"])
    assert "hunter2" not in "".join(shown)
    assert "<secret>" in shown[4]
    assert (*shown[:4], shown[5]) == ("qemu", "-name", "a", flag, "-S")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("-vnc", ":0,password=on"),
        ("-object", "secret,id=s,file=/etc/key"),
        ("-blockdev", "driver=qcow2,encrypt.key-secret=s,node-name=n"),
        ("-drive", "file=a,,b,if=none,,"),
        ("-device", '{"driver":"e1000",  "mac":"52:54:00:00:00:01"}'),
        ("-append", "root=/dev/vda quiet"),
    ],
)
def test_what_is_no_secret_keeps_its_spelling(flag: str, value: str) -> None:
    assert redact(["qemu", flag, value]) == ("qemu", flag, value)


@given(st.lists(st.text(max_size=30)))
def test_no_argv_makes_it_fail(argv: list[str]) -> None:
    redact(argv)
