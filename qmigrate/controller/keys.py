"""A job's two key pairs, made afresh and gone with the job; the only user of `cryptography`.

Importing it costs as much as the keys themselves, so both happen in a worker thread: start
`make_keys` beside the SSH logins and it costs nothing (measured: 0.2-0.35 s for a pair of pairs).
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import trio

from qmigrate.core.secret import Identity, Secret

# Nobody of ours reads the dates (the pin is exact); they are wide for whoever else might.
_VALID_BEFORE = timedelta(days=2)
_VALID_AFTER = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class JobKeys:
    """Who each side is, and whom it answers to."""

    source: Identity
    destination: Identity


async def make_keys(job: str) -> JobKeys:
    """Return new keys for `job`. When cancelled the thread ends by itself and its keys are lost."""
    return await trio.to_thread.run_sync(_make_keys, job, abandon_on_cancel=True)


def _make_keys(job: str) -> JobKeys:
    source_certificate, source_key = make_pair(f"qmigrate {job} source")
    destination_certificate, destination_key = make_pair(f"qmigrate {job} destination")
    return JobKeys(
        source=Identity(source_certificate, source_key, destination_certificate),
        destination=Identity(destination_certificate, destination_key, source_certificate),
    )


def make_pair(name: str) -> tuple[str, Secret[str]]:
    """Return a self-signed P-256 certificate and its key, as PEM; blocks for some milliseconds.

    CA:FALSE, so that OpenSSL's chain check refuses what the key might sign, before our own compare.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    # X.520 allows a common name of 64 characters; the name is for people, nothing compares it.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID_BEFORE)
        .not_valid_after(now + _VALID_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM).decode(), Secret(key_pem.decode())
