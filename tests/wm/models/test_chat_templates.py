"""Chat templates of untrusted folders: bounded in time and size, usual ones pass."""

from pathlib import Path

import pytest

from wm.errors import InputError
from wm.models.chat_templates import check_chat_template

CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what changed?"}]}]
TOKENS = {"bos_token": "<s>"}
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
USUAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'x' %}{{ raise_exception('no') }}{% endif %}"
    "{% generation %}{{ message.content | tojson }}{{ strftime_now('%Y') }}{% endgeneration %}{% break %}{% endfor %}"
)


def test_a_template_that_never_ends_is_refused():
    with pytest.raises(InputError, match=r"^folder: the chat template takes more than 1 s$"):
        check_chat_template(LOOP, CHAT, TOKENS, Path("folder"), max_render_s=1.0)


@pytest.mark.parametrize("template", ["{{ 'a' * 10**10 }}", "{{ 'a' * 2000000 }}", {"default": "{{ 'a' * 10**10 }}"}])
def test_a_template_that_grows_is_refused(template):
    with pytest.raises(InputError, match=r"^folder: the chat template writes more than 1 MB"):
        check_chat_template(template, CHAT, TOKENS, Path("folder"))


@pytest.mark.parametrize("template", [USUAL, "{% if %}", "{{ raise_exception('no') }}", None, {"a": USUAL, "b": 7}])
def test_usual_and_refused_templates_pass_the_time_check(template):
    check_chat_template(template, CHAT, TOKENS, Path("folder"))
