"""A job's keys: made beside other work, delivered as plain strings, never seen."""

import json
import pickle
import subprocess
import sys
import traceback

import pytest

from qmigrate.agent.protocol import codec, structure_untrusted
from qmigrate.controller.keys import make_keys
from qmigrate.core.errors import ProtocolError
from qmigrate.core.secret import Identity, Secret


async def test_each_side_holds_its_own_key_and_the_others_certificate() -> None:
    keys = await make_keys("job-1")
    assert keys.source.peer_certificate_pem == keys.destination.certificate_pem
    assert keys.destination.peer_certificate_pem == keys.source.certificate_pem
    assert keys.source.key != keys.destination.key
    assert keys.source.key.reveal().startswith("-----BEGIN PRIVATE KEY-----")
    assert (await make_keys("job-1")).source.key != keys.source.key


def test_importing_the_keys_room_imports_no_cryptography() -> None:
    code = "import sys, qmigrate.controller.keys; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_secret_is_shown_by_no_way_of_printing() -> None:
    identity = Identity("CERT", Secret("hunter2"), "PEER")
    shown = [
        str(identity.key),
        repr(identity),
        f"{identity.key}",
        "%s %r" % (identity.key, identity.key),  # noqa: UP031 - the way of old logging
        f"{[identity]}",
    ]
    try:
        raise ValueError(identity)
    except ValueError:
        shown.append(traceback.format_exc())
    with pytest.raises(TypeError) as unjson:
        json.dumps({"key": identity.key})
    with pytest.raises(TypeError) as unpickled:
        pickle.dumps(identity.key)
    shown += [str(unjson.value), str(unpickled.value)]
    assert not [text for text in shown if "hunter2" in text]
    assert repr(identity.key) == "<secret>"


def test_secrets_are_equal_by_value_and_kind() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret(b"a") != Secret("a")
    assert len({Secret("a"), Secret("a"), Secret(b"a")}) == 2
    assert Secret("a") != "a"
    assert Secret("ä") == Secret("ä")


def test_an_identity_crosses_the_wire_as_plain_strings() -> None:
    identity = Identity("CERT", Secret("hunter2"), "PEER")
    plain = codec.unstructure(identity)
    assert plain == {"certificate_pem": "CERT", "key": "hunter2", "peer_certificate_pem": "PEER"}
    assert structure_untrusted(json.loads(json.dumps(plain)), Identity) == identity


@pytest.mark.parametrize(
    "spoilt",
    [
        {"key": ["hunter2"]},
        {"key": {"text": "hunter2"}},
        {"key": "hunter2", "certificate_pem": 1},
        {"key": "hunter2", "surplus": 1},
    ],
)
def test_a_faulty_identity_is_refused_without_quoting_the_key(spoilt: dict[str, object]) -> None:
    fields = {"certificate_pem": "CERT", "key": "k", "peer_certificate_pem": "PEER"} | spoilt
    with pytest.raises(ProtocolError) as caught:
        structure_untrusted(fields, Identity)
    assert "hunter2" not in str(caught.value)
