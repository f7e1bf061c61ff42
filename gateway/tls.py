"""HTTPS: the certificate that the port shows, and those that it asks of its clients."""

from __future__ import annotations

import ssl
from typing import NoReturn

from ipc.process import FatalError


def server_context(certfile: str, keyfile: str, ca_certs: str = "") -> ssl.SSLContext | None:
    """What the port needs to speak HTTPS; None when there is no certificate. Raises FatalError.

    With `ca_certs`, a client must show a certificate that one of these authorities has signed.
    """
    if not certfile:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certfile, keyfile, password=_refuse_password)
    except ssl.SSLError as error:
        reason = error.reason or "it is not valid PEM"
        raise FatalError(f"--ssl-certfile {certfile}, --ssl-keyfile {keyfile}: {reason}") from None
    except OSError as error:
        raise FatalError(f"--ssl-certfile {certfile}, --ssl-keyfile {keyfile}: {error.strerror}") from None
    if ca_certs:
        try:
            context.load_verify_locations(ca_certs)
        except ssl.SSLError as error:
            raise FatalError(f"--ssl-ca-certs {ca_certs}: {error.reason or 'it is not valid PEM'}") from None
        except OSError as error:
            raise FatalError(f"--ssl-ca-certs {ca_certs}: {error.strerror}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _refuse_password() -> NoReturn:
    """Nobody is there to be asked for it."""
    raise FatalError("--ssl-keyfile: the key needs a password; give one without")
