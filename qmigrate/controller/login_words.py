"""Why a host lets nobody in, in the same words whichever program asked. Pure."""

from collections.abc import Sequence

from qmigrate.controller.openssh import SshConfig
from qmigrate.core.errors import LoginError

MAX_TRIES = "the host ended the login (its MaxAuthTries?)"


def login_refused(
    conf: SshConfig,
    *,
    tried: Sequence[str],
    locked: Sequence[str],
    methods: Sequence[str],
    why: str | None,
) -> LoginError:
    """Return the error: what was tried, what the host wanted, and the one thing to do about it.

    `locked`: key files that need their passphrase; `methods`: what the host would take.
    """
    if why is None and {"password", "keyboard-interactive"} & set(methods):
        why = "it would ask for a password, which qmigrate never does"
    reasons = [*([why] if why else []), *(f"{path} needs its passphrase" for path in locked)]
    what = f"{conf.user}@{conf.hostname} lets nobody in with what was tried: "
    what += "; ".join(tried) or "no key"
    if reasons:
        what += f" ({'; '.join(reasons)})"
    if locked:
        fix = f"ssh-add {locked[0]}"
    elif why == MAX_TRIES:
        fix = "name the one key: IdentityFile and IdentitiesOnly yes in ~/.ssh/config"
    else:
        fix = f"ssh-copy-id {conf.destination}, or name a key in ~/.ssh/config (IdentityFile)"
    return LoginError(what, phase="connect", next_step=fix)
