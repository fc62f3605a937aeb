"""Where the time of a login goes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoginTimings:
    """Seconds of each step; the system's ssh does not tell connecting from logging in."""

    resolve_s: float = 0.0  # ssh -G, ssh-keygen -F, the import of paramiko
    connect_s: float = 0.0  # TCP and key exchange
    auth_s: float = 0.0
