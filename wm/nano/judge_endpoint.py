"""Answer as a judge of the tabletop world, over the part of OpenAI's chat API that ``wm judge`` uses.

It sees what any judge sees, two images and a text with the action in it, and reads both images back into states. So the
path to a real judge can be walked, and its figures checked, without a key. It listens on loopback alone.
"""

import base64
import binascii
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from wm.errors import InputError
from wm.images import Pixels, decode_image, fit_square
from wm.judging import JudgeScore
from wm.nano.world.actions import Action, parse_action
from wm.nano.world.oracle import UNREADABLE, judge_states, read_states
from wm.nano.world.scenes import SIDE_PX

_MAX_BODY_BYTES = 64 * 1024 * 1024
_PNG_PREFIX = "data:image/png;base64,"


def judge_action(source_HWC: Pixels, predicted_HWC: Pixels, action: Action) -> JudgeScore:
    """Score a prediction without its target: the state that the action leads to is computed from the source's.

    Args:
        source_HWC: uint8 RGB of any size; the middle square is read.
        predicted_HWC: The same.
        action: What should have happened.

    Returns:
        The oracle's score.

    Raises:
        InputError: The source shows something else, or the action cannot happen in it.
    """
    source, predicted = read_states(np.stack([fit_square(image, SIDE_PX) for image in (source_HWC, predicted_HWC)]))
    if UNREADABLE in source.cells:
        raise InputError("the first image does not show the tabletop")
    target = action.apply(source)
    if target is None:
        raise InputError(f"{action.text()!r} cannot happen in the first image")
    return judge_states(source, target, predicted)


def answer(body: bytes) -> str:
    """Answer the body of a chat completion's request as a judge does: a dictionary with two scores.

    Args:
        body: JSON with one message of a text and two PNG data URLs; the action is the text after a line's last colon.

    Returns:
        The judge's text. Where it cannot judge it says so in words, as models do.
    """
    # Whatever comes is answered: a judge that breaks off a connection would be asked again and again.
    try:
        parts = json.loads(body)["messages"][-1]["content"]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        source, predicted = (
            decode_image(base64.b64decode(url.removeprefix(_PNG_PREFIX), validate=True), f"image {number}")
            for number, url in enumerate(urls, 1)
        )
        actions = [parse_action(line.rpartition(":")[2]) for line in text.splitlines()]
        action = next(action for action in reversed(actions) if action is not None)
        score = judge_action(source, predicted, action)
    except StopIteration:
        return "I find no instruction in the words of the tabletop."
    except (InputError, binascii.Error) as error:
        return f"I cannot judge this: {error}."
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return "I expected one message with a text and two images."
    scores = [score.editing_success, score.minimal_editing]
    return json.dumps({"score": scores, "reasoning": "right" if score.right else "not as the instruction leads to"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the caller reports progress."""

    def do_POST(self) -> None:
        """Answer ``/v1/chat/completions``."""
        # Bounded before anything is read.
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            self._reply(413, {"error": {"message": f"expected a body of at most {_MAX_BODY_BYTES:,} bytes"}})
            return
        body = self.rfile.read(int(length))
        if self.path != "/v1/chat/completions":
            self._reply(404, {"error": {"message": f"no such path: {self.path[:100]}"}})
            return
        message = {"role": "assistant", "content": answer(body)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        # No tokens are counted, and the run costs nothing.
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        self._reply(
            200, {"id": "tabletop", "object": "chat.completion", "created": 0, "model": "tabletop-oracle",
                  "choices": [choice], "usage": usage},
        )  # fmt: skip

    def _reply(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve_judge() -> Iterator[str]:
    """Serve on a free port of loopback while the block runs.

    Yields:
        The base URL for OpenAI's client.
    """
    # Port 0: the system chooses a free one, so that two runs do not meet.
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="tabletop-judge", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
