"""Answers to image edits in OpenAI's form: pictures encoded, the verification of each beside it."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from wm.api import Edit, OutputFormat
from wm.images import Pixels, encode_png
from wm.judging import unchanged_share

__all__ = ["choose", "edit_reply", "encode_picture", "unchanged_share", "unranked_entries"]


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
    """The answer: OpenAI's ``ImagesResponse`` with each picture's ``verification`` and the seed beside it.

    ``pictures``: encoded bytes and their verification, best first. ``facts``: ``model``, ``side_px`` of the
    pictures, ``tokens_per_image``, ``action_tokens`` and ``distinct``, the number of candidates that differ.
    ``created_s``: Unix time.
    """
    image_tokens, text_tokens = facts["tokens_per_image"], facts["action_tokens"]
    drawn = image_tokens * edit.best_of
    reply = {
        "created": created_s,
        "data": [
            {"b64_json": base64.b64encode(data).decode(), "verification": dict(verification)}
            for data, verification in pictures
        ],
        "background": "opaque",
        "output_format": edit.output_format,
        "size": f"{facts['side_px']}x{facts['side_px']}",
        "usage": {
            "input_tokens": image_tokens + text_tokens,
            "input_tokens_details": {"image_tokens": image_tokens, "text_tokens": text_tokens},
            "output_tokens": drawn,
            "output_tokens_details": {"image_tokens": drawn, "text_tokens": 0},
            "total_tokens": image_tokens + text_tokens + drawn,
        },
        "model": facts["model"],
        "seed": edit.seed,
        "best_of": edit.best_of,
        "distinct": facts["distinct"],
    }
    return reply | ({"safety_identifier": edit.safety_identifier} if edit.safety_identifier else {})


def unranked_entries(num_samples: int, seed: int) -> list[dict[str, Any]]:
    """The ``verification`` of candidates that nobody verified, in the order of their draws."""
    unknown = dict.fromkeys(("logprob", "mean_logprob", "tokens", "rank"))
    return [unknown | {"seed": seed, "index": index, "duplicate_of": None} for index in range(num_samples)]


def choose(entries: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """The first ``n`` entries that differ; equal pictures fill up only where fewer differ."""
    return sorted(entries, key=lambda entry: entry["duplicate_of"] is not None)[:n]
