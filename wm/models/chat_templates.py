"""Bound the time and memory of a folder's chat template, before transformers renders it in this process.

Jinja's sandbox keeps a template from code and files, but not from loops inside loops or strings of gigabytes. It is
rendered once by another process, which can be ended. Whether the prompt makes sense is not known here.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from wm.errors import InputError

MAX_RENDER_S = 20.0
"""Seconds that a template may take, the start of a process included; usual ones take a millisecond."""
_TOO_LARGE = 3
_RENDER = """
import json, resource, sys
from datetime import datetime
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Generation(Extension):
    tags = {"generation"}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

def fail(message):
    raise ValueError(message)

resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
template, chat, tokens = json.load(sys.stdin)
try:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals |= {"raise_exception": fail, "strftime_now": datetime.now().strftime}
    text = environment.from_string(template).render(
        messages=chat, add_generation_prompt=True, tools=None, documents=None, **tokens
    )
    sys.exit(3 if len(text) > 1 << 20 else 0)
except (MemoryError, OverflowError):
    sys.exit(3)
"""


def check_chat_template(
    template: object,
    chat: Sequence[Mapping[str, object]],
    tokens: Mapping[str, object],
    where: Path,
    *,
    max_render_s: float = MAX_RENDER_S,
) -> None:
    """Refuse a chat template that takes too long or too much memory for a chat.

    Args:
        template: Jinja, or templates by name.
        chat: The messages that will be rendered.
        tokens: Special tokens by role, which templates may name.
        where: The folder, named in errors.
        max_render_s: Seconds that each template may take.

    Raises:
        InputError: It is not done in time, needs a gigabyte, or writes a megabyte. Other faults are left to
            transformers, which says what they are.
    """
    templates = template.values() if isinstance(template, dict) else [template]
    for text in templates:
        if not isinstance(text, str):
            continue
        # The process gets the texts and returns a status: nothing of its output is trusted.
        values = json.dumps([text, list(chat), dict(tokens)], default=str).encode()
        # Isolated: nothing of the user's environment or the current folder is imported.
        command = [sys.executable, "-I", "-c", _RENDER]
        try:
            result = subprocess.run(command, input=values, capture_output=True, check=False, timeout=max_render_s)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{where}: the chat template takes more than {max_render_s:g} s") from error
        if result.returncode == _TOO_LARGE:
            raise InputError(f"{where}: the chat template writes more than 1 MB, or needs more than 1 GB of memory")
