"""Find the worker processes of one Ray session, to kill them in trials."""

from pathlib import Path


def actor_processes(variable: str, value: str, title: str) -> list[int]:
    """List the actors of one session by process id.

    Args:
        variable: Environment variable by which the session is recognised.
        value: Its value there.
        title: Part of the title that Ray gives the actor's process, such as the class's name.
    """
    mark, process_ids = f"{variable}={value}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            # Most processes are no actors: of them no more is read.
            if not command.startswith(b"ray::") or title.encode() not in command:
                continue
            # Ray writes a worker's title over its own environment: the raylet's, its parent, is intact.
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            environment = Path("/proc", parent, "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile, or is another user's
        if mark in environment.split(b"\0"):
            process_ids.append(int(folder.name))
    return process_ids
