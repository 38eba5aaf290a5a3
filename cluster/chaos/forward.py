"""Forward a port to another one: ``python -m cluster.chaos.forward PORT TARGET_PORT``, on 127.0.0.1.

To its clients its end is that of the server behind it, which keeps what it holds.
"""

import asyncio
import sys
from contextlib import suppress

_CHUNK_BYTES = 65_536


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        # The other direction may have more to say.
        writer.write_eof()


async def forward(port: int, target_port: int) -> None:
    """Accept connections until this process is ended.

    Args:
        port: Where to listen.
        target_port: Of the server.
    """
    # The loop keeps tasks by weak references alone: one that waits might be collected.
    tasks: set[object] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", target_port)
        try:
            await asyncio.gather(_copy(reader, target_writer), _copy(target_reader, writer))
        finally:
            for stream in (writer, target_writer):
                stream.close()
            tasks.discard(task)

    server = await asyncio.start_server(connect, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(forward(int(sys.argv[1]), int(sys.argv[2])))
