"""The messages of a chat completion: the two images that are asked about, and what else a history may hold."""

from collections.abc import Mapping, Sequence, Set

from serve_apps.openai.errors import ApiError, JsonObject
from serve_apps.openai.images import DATA_URL_SCHEMA, IGNORED_OF_IMAGES, NamedImage, data_url_bytes

# Of a history; with two a question, more than anybody asks. The size of a body bounds what they hold.
MAX_MESSAGES = 10_000
# Of the last turn.
MAX_PARTS = 1_000
INSTRUCTIONS = ("system", "developer")
ANSWERS = ("assistant", "tool", "function")
ROLES = ("user", *INSTRUCTIONS, *ANSWERS)
# What clients say of a part for the sake of a cache.
IGNORED_OF_PARTS = ("cache_control", "prompt_cache_breakpoint")


def find_images(messages: object) -> list[NamedImage]:
    """Return the last two images of the user's last turn, with the names of their fields."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise ApiError(f"messages: expected a list of 1 to {MAX_MESSAGES:,} messages", param="messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    references: list[tuple[str, object]] = []
    num_parts = 0
    for index in _last_turn(messages):
        name = f"messages[{index}].content"
        content = _check_content(messages[index], f"messages[{index}]", optional=("name", "id", *IGNORED_OF_PARTS))
        num_parts += len(content)
        if num_parts > MAX_PARTS:
            raise ApiError(f"{name}: at most {MAX_PARTS:,} parts are read in a turn", param=name)
        for row, part in enumerate(content):
            references += _reference_of(part, f"{name}[{row}]")
    # Images before these two, of this turn too, are a history: nobody decodes them.
    images = [(name, data_url_bytes(reference, name)) for name, reference in references[-2:]]
    if len(images) < 2:
        before = "; images of older turns are not asked about, send them again" if len(messages) > 1 else ""
        raise ApiError(
            f"messages hold {len(images)} images in the user's last turn; expected two image_url parts, the source "
            f"first, then the target{before}",
            param="messages",
            code="missing_required_parameter",
        )
    return images


def _check_message(message: object, name: str) -> None:
    """Raise :class:`ApiError` unless a message has a role; an instruction may hold text alone.

    Nothing else of a history is looked at.
    """
    # As little as can be: a client may have kept a history with all fields of another server.
    if not isinstance(message, Mapping):
        raise ApiError(f"{name}: expected an object with role, content", param=name)
    if "role" not in message:
        raise ApiError(f"{name}.role is missing", param=f"{name}.role", code="missing_required_parameter")
    role = message["role"]
    if role not in ROLES:
        raise ApiError(f"{name}.role = {role!r:.80}: expected {', '.join(ROLES)}", param=f"{name}.role")
    # An image in an instruction would be taken for one of the two, or silently ignored.
    content = message.get("content")
    if role in INSTRUCTIONS and isinstance(content, list):
        for index, part in enumerate(content):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind != "text":
                field = f"{name}.content[{index}].type"
                raise ApiError(
                    f"{field} = {kind!r:.80}: expected text, for images belong in messages of the user", param=field
                )


def _last_turn(messages: Sequence[Mapping[str, object]]) -> list[int]:
    """List the indices of the user's last messages with no answer in between, first one first."""
    turn: list[int] = []
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            turn.append(index)
        elif turn and messages[index]["role"] in ANSWERS:
            break
    return turn[::-1]


def _check_content(message: Mapping[str, object], name: str, *, optional: Sequence[str]) -> list[object]:
    """Return the parts of a user's message; none of a plain text, which changes nothing."""
    _read_object(message, name, required=("role", "content"), optional=optional)
    if not isinstance(message.get("name") or "", str):
        raise ApiError(f"{name}.name: expected text", param=f"{name}.name")
    content = message["content"]
    if isinstance(content, str):
        return []
    if not isinstance(content, list):
        raise ApiError(f"{name}.content: expected text or a list of parts", param=f"{name}.content")
    return content


def _reference_of(part: object, name: str) -> list[tuple[str, object]]:
    """Return the text of a part's image, with the name of its field; nothing for a text."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    # Texts change nothing; a malformed one is an error all the same.
    if kind == "text":
        text = _read_object(part, name, required=("type", "text"), optional=IGNORED_OF_PARTS)["text"]
        if not isinstance(text, str):
            raise ApiError(f"{name}.text: expected text, got {type(text).__name__}", param=f"{name}.text")
        return []
    if kind != "image_url":
        raise ApiError(f"{name}.type = {kind!r:.80}: expected text or image_url", param=f"{name}.type")
    optional = (*IGNORED_OF_IMAGES, *IGNORED_OF_PARTS)
    # OpenAI has an object with the URL; other clients send the URL itself.
    reference = _read_object(part, name, required=("type", "image_url"), optional=optional)["image_url"]
    field = f"{name}.image_url"
    if isinstance(reference, str):
        return [(field, reference)]
    url = _read_object(reference, field, required=("url",), optional=IGNORED_OF_IMAGES)["url"]
    return [(f"{field}.url", url)]


def _read_object(
    value: object, name: str, *, required: Sequence[str], optional: Sequence[str] = ()
) -> Mapping[str, object]:
    """Return a JSON object; raise :class:`ApiError` unless it has the required fields, and none that is unknown."""
    if not isinstance(value, Mapping):
        raise ApiError(f"{name}: expected an object with {', '.join(required)}", param=name)
    for key in required:
        if value.get(key) is None:
            raise ApiError(f"{name}.{key} is missing", param=f"{name}.{key}", code="missing_required_parameter")
    names = (*required, *optional)
    for key in value:
        if key not in names and value[key] is not None:
            message = f"unknown field {key!r:.80} in {name}; the fields are {', '.join(names)}"
            raise ApiError(message, param=f"{name}.{key:.80}", code="unknown_parameter")
    return value


def messages_schema() -> JsonObject:
    """Build the JSON schema of ``messages``."""
    cache: JsonObject = {name: {} for name in IGNORED_OF_PARTS}
    beside: JsonObject = {name: {} for name in IGNORED_OF_IMAGES if name != "type"}
    text = _object({"type": {"const": "text"}, "text": {"type": "string"}} | cache, optional={*cache})
    reference = _object({"url": DATA_URL_SCHEMA} | beside, optional={*beside})
    image = _object(
        {"type": {"const": "image_url"}, "image_url": {"anyOf": [reference, DATA_URL_SCHEMA]}} | beside | cache,
        optional={*beside, *cache},
    )
    name: JsonObject = {"name": {"type": ["string", "null"]}}
    # Not the checks themselves: only what a right request looks like.
    asking, instructing = (
        _object(
            {
                "role": {"enum": roles},
                "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": parts}}]},
            }
            | name,
            optional={"name"},
        )
        for roles, parts in ((["user"], [text, image]), ([*INSTRUCTIONS], [text]))
    )
    answering = {"type": "object", "properties": {"role": {"enum": [*ANSWERS]}}, "required": ["role"]}
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_MESSAGES,
        "items": {"anyOf": [asking, instructing, answering]},
        "description": "The last two image_url parts of the user's last turn are asked about, the source first, then "
        "the target. Texts and older turns change nothing.",
    }


def _object(properties: JsonObject, optional: Set[str] = frozenset()) -> JsonObject:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
