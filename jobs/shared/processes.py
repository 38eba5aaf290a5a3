"""Find the worker processes of one Ray session, to kill them in trials."""

from pathlib import Path


def actor_processes(variable: str, value: str, title: str) -> list[int]:
    """Process ids of the actors whose title holds ``title``, in a session whose raylet has ``variable=value`` in its
    environment. Ray writes a worker's title over its own environment, so that only its parent's tells whose it is."""
    mark, found = f"{variable}={value}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            environment = Path("/proc", parent, "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile, or is another user's
        if command.startswith(b"ray::") and title.encode() in command and mark in environment.split(b"\0"):
            found.append(int(folder.name))
    return found
