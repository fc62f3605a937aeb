"""TLS for one job: who we are, and the one certificate that we answer to.

Each side has a self-signed P-256 certificate made for this job alone and holds the other's. What
is trusted is that certificate itself, byte for byte: OpenSSL's own verdict is not enough, since a
certificate *signed by* the pinned key passes its chain check (seen; facts/transport §7). Dates are
not checked, an exact pin needs none and hosts' clocks differ.

Only the standard library's ssl: this file is pushed to hosts.
"""

import hmac
import os
import ssl

from qmigrate.core.secret import Identity, Secret

__all__ = ["Identity", "Secret", "client_context", "is_pinned", "server_context"]

# X509_V_FLAG_NO_CHECK_TIME (openssl/x509_vfy.h, since 1.1.0); Python's ssl has no name for it.
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)


def server_context(identity: Identity) -> ssl.SSLContext:
    """Return the context of whoever accepts: demands a certificate, gives no session tickets.

    Raises ssl.SSLError when the PEM texts are not what they should be.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.num_tickets = 0  # a ticket would be a second way in, and a message after the handshake
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """Return the context of whoever dials; use it without a server name (no SNI).

    Raises ssl.SSLError when the PEM texts are not what they should be.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity)


def _context(protocol: int, identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # addresses prove nothing here, the pin does
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _NO_CHECK_TIME
    context.load_verify_locations(cadata=identity.peer_certificate_pem)
    _load_key(context, identity)
    return context


def _load_key(context: ssl.SSLContext, identity: Identity) -> None:
    """Give OpenSSL the key by a memfd: its reader wants a path, and a key never sees a disk."""
    text = (identity.certificate_pem + "\n" + identity.key.reveal()).encode()
    fd = os.memfd_create("qmigrate-key", os.MFD_CLOEXEC)
    try:
        os.write(fd, text)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
        os.pwrite(fd, bytes(len(text)), 0)  # the pages outlive the close until they are used again
    finally:
        os.close(fd)


def is_pinned(certificate_der: bytes | None, identity: Identity) -> bool:
    """Tell whether the peer showed exactly the certificate that we hold of it."""
    pin = ssl.PEM_cert_to_DER_cert(identity.peer_certificate_pem)
    return certificate_der is not None and hmac.compare_digest(certificate_der, pin)
