"""Listening on a Unix socket (--uds) instead of a port."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from ipc.process import FatalError


def bind(path: str) -> socket.socket:
    """A socket at `path` that this user alone may connect to; one that a dead server left behind is replaced.

    Raises FatalError when a server listens there, or something else is in the way.
    """
    remove_dead(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise FatalError(f"--uds {path}: {error.strerror or error}") from None
    finally:
        os.umask(mask)
    return listener


def remove_dead(path: str) -> None:
    """Take away a socket that nobody listens on. Raises FatalError for anything else that is there."""
    try:
        is_socket = stat.S_ISSOCK(Path(path).lstat().st_mode)
    except OSError:
        return  # nothing is there, or binding is going to say what is wrong
    if not is_socket:
        raise FatalError(f"--uds {path}: a file is there that is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except OSError as error:
            raise FatalError(f"--uds {path}: {error.strerror or error}") from None
    raise FatalError(f"--uds {path}: a server listens there already; choose another path")
