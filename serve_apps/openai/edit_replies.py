"""Answers to image edits in OpenAI's form: pictures encoded, the verification of each beside it."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from serve_apps.openai import Edit, OutputFormat
from wm.images import Pixels, encode_png
from wm.judging import unchanged_share

__all__ = [
    "choose",
    "edit_events",
    "edit_reply",
    "encode_picture",
    "preview_event",
    "unchanged_share",
    "unranked_entries",
    "usage_of",
]


def encode_picture(pixels_HWC: Pixels, output_format: OutputFormat, compression: int, side_px: int | None) -> bytes:
    """Scale to ``side_px`` (Lanczos; None: as it is) and encode; ``compression``: quality of jpeg, webp."""
    if side_px is not None and pixels_HWC.shape[:2] != (side_px, side_px):
        image = Image.fromarray(pixels_HWC).resize((side_px, side_px), Image.Resampling.LANCZOS)
    else:
        image = Image.fromarray(pixels_HWC)
    buffer = io.BytesIO()
    if output_format == "png":
        return encode_png(np.asarray(image))
    image.save(buffer, output_format.upper(), quality=compression)
    return buffer.getvalue()


def edit_reply(
    edit: Edit,
    *,
    pictures: Sequence[tuple[bytes, Mapping[str, Any]]],
    facts: Mapping[str, Any],
    created_s: int,
) -> dict[str, Any]:
    """Return the answer: OpenAI's ``ImagesResponse`` with each picture's ``verification`` and the seed beside it.

    ``pictures``: encoded bytes and their verification, best first; those past the first ``n`` are ``candidates`` only,
    which are all of them, where the request asks for candidates. ``facts``: ``model``, ``side_px`` of the pictures,
    ``tokens_per_image``, ``action_tokens``, ``drawn`` and ``distinct``, the numbers of candidates and of those that
    differ. ``created_s``: Unix time.
    """
    entries = [_entry(data, verification) for data, verification in pictures]
    reply = {
        "created": created_s,
        "data": entries[: edit.n],
        "background": "opaque",
        "output_format": edit.output_format,
        "size": f"{facts['side_px']}x{facts['side_px']}",
        "usage": usage_of(facts["tokens_per_image"], facts["action_tokens"], facts["drawn"]),
    }
    return reply | _beside(edit, facts, entries)


def edit_events(
    edit: Edit,
    *,
    pictures: Sequence[tuple[bytes, Mapping[str, Any]]],
    facts: Mapping[str, Any],
    created_s: int,
) -> list[dict[str, Any]]:
    """Return the end of a streamed answer: OpenAI's ``image_edit.completed``, one for each of the ``n`` best, best
    first. What
    belongs to all of them is reported in each, ``candidates`` in the first. Arguments as of :func:`edit_reply`."""
    whole = edit_reply(edit, pictures=pictures, facts=facts, created_s=created_s)
    common = {key: whole[key] for key in ("background", "output_format", "size", "usage", "model", "seed", "best_of")}
    common |= {key: whole[key] for key in ("drawn", "distinct", "safety_identifier") if key in whole}
    events = [
        {"type": "image_edit.completed", "created_at": created_s, "quality": "auto"} | common | entry
        for entry in whole["data"]
    ]
    return [events[0] | {key: whole[key] for key in ("candidates",) if key in whole}, *events[1:]]


def preview_event(
    edit: Edit, picture: bytes, *, index: int, progress: float, side_px: int, created_s: int
) -> dict[str, Any]:
    """OpenAI's ``image_edit.partial_image``; ``progress``: share of the image's tokens that are drawn."""
    return {
        "type": "image_edit.partial_image",
        "b64_json": base64.b64encode(picture).decode(),
        "partial_image_index": index,
        "progress": progress,
        "created_at": created_s,
        "background": "opaque",
        "output_format": edit.output_format,
        "quality": "auto",
        "size": f"{side_px}x{side_px}",
    }


def usage_of(tokens_per_image: int, action_tokens: int, num_drawn: int) -> dict[str, Any]:
    """OpenAI's ``usage`` of ``num_drawn`` images after one and the words of actions."""
    drawn = tokens_per_image * num_drawn
    return {
        "input_tokens": tokens_per_image + action_tokens,
        "input_tokens_details": {"image_tokens": tokens_per_image, "text_tokens": action_tokens},
        "output_tokens": drawn,
        "output_tokens_details": {"image_tokens": drawn, "text_tokens": 0},
        "total_tokens": tokens_per_image + action_tokens + drawn,
    }


def _entry(data: bytes, verification: Mapping[str, Any]) -> dict[str, Any]:
    return {"b64_json": base64.b64encode(data).decode(), "verification": dict(verification)}


def _beside(edit: Edit, facts: Mapping[str, Any], entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is ours in a reply."""
    fields = {"model": facts["model"], "seed": edit.seed, "best_of": edit.best_of}
    fields |= {"drawn": facts["drawn"], "distinct": facts["distinct"]}
    if edit.return_candidates:
        fields["candidates"] = [entry for entry in entries if entry["verification"]["duplicate_of"] is None]
    return fields | ({"safety_identifier": edit.safety_identifier} if edit.safety_identifier else {})


def unranked_entries(num_samples: int, seed: int) -> list[dict[str, Any]]:
    """Return the ``verification`` of candidates that nobody verified, in the order of their draws."""
    unknown = dict.fromkeys(("logprob", "mean_logprob", "tokens", "rank"))
    return [unknown | {"seed": seed, "index": index, "duplicate_of": None} for index in range(num_samples)]


def choose(entries: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Return the first ``n`` entries that differ; equal pictures fill up only where fewer differ."""
    return sorted(entries, key=lambda entry: entry["duplicate_of"] is not None)[:n]
