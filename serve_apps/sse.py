"""Server-sent events, as OpenAI's streams have them."""

import json
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.responses import StreamingResponse

from serve_apps import metrics
from serve_apps.openai.errors import ApiError, JsonObject


async def event_stream(events: AsyncGenerator[JsonObject, None], *, ends_with_done: bool = False) -> StreamingResponse:
    """Stream events, each under the name in its ``type``, if it has one.

    What goes wrong before the first is raised, so that the answer has its status; what goes wrong later is an event
    ``error``, the last. A client that leaves ends ``events``.

    Args:
        events: JSON objects.
        ends_with_done: Whether ``[DONE]`` is the end, as in chat completions.
    """
    # Before the answer begins: its status can still say what went wrong.
    first = await anext(events)

    async def lines() -> AsyncIterator[str]:
        try:
            yield _line(first)
            async for event in events:
                yield _line(event)
            if ends_with_done:
                yield "data: [DONE]\n\n"
        except ApiError as error:
            metrics.record(metrics.STREAM_ERRORS, code=error.code or "none")
            yield error_event(error)
        # Nobody expected it: the log has it, the client hears no more than that.
        except Exception:
            metrics.record(metrics.STREAM_ERRORS, code="internal_error")
            yield error_event(ApiError.internal())
            raise
        finally:
            await events.aclose()

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def error_event(error: ApiError) -> str:
    """Return the end of a stream that failed."""
    return _line({"type": "error"} | error.body())


def _line(event: JsonObject) -> str:
    # Chat chunks have no type, as OpenAI's have no event name.
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n"
