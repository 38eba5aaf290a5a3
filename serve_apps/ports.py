"""Check that a server can listen where it is asked to, and say who does so already."""

import errno
import socket
from contextlib import suppress
from pathlib import Path

from wm.errors import InputError

# In the system's tables of sockets.
_LISTEN = "0A"
_STATE_COLUMN, _INODE_COLUMN = 3, 9


def check_port(host: str, port: int, key: str = "port") -> None:
    """Raise :class:`InputError` if nobody could listen there: Ray would wait long and say little.

    Args:
        host: An address or a name of this machine.
        port: TCP port.
        key: Of the recipe, for the message.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        holder = _describe_listener(port) if error.errno == errno.EADDRINUSE else ""
        # Python adds the address, which is said already.
        reason = str(error.strerror).partition(" (while")[0]
        raise InputError(f"cannot listen on {host} port {port}: {reason}{holder}; give another {key}=") from error


def _describe_listener(port: int) -> str:
    """Say which process listens on a port; empty where the system keeps it from this user, or is not Linux."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    # A process may end, or be another user's, while it is looked at.
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(str(file.readlink()) in sockets for file in folder.iterdir()):
                command = (folder.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f" by process {folder.parent.name} ({command.strip():.100})"
    return ""


def _listening_inodes(port: int) -> set[str]:
    """List the sockets of this machine that listen on a port."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                columns = line.split()
                # 0100007F:1F40: the address, and the port in hexadecimal.
                is_port = int(columns[1].rpartition(":")[2], 16) == port
                if is_port and columns[_STATE_COLUMN] == _LISTEN:
                    inodes.add(columns[_INODE_COLUMN])
    return inodes
