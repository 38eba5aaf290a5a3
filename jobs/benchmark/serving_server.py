"""Run the two sides of the serving benchmark: a server in a process of its own, and the library in this one."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from wm.dynamics import (
    CodeForward,
    CodeInverse,
    Prediction,
    Search,
    load_role,
    observe_codes,
    predict_observations,
)
from wm.errors import InputError
from wm.images import decode_image, encode_png, fit_square
from wm.models import load_codec
from wm.nano.preset import NanoPreset, write_random_base
from wm.ports import find_free_port

MAX_PIXELS = 40_000_000
WIDE = NanoPreset(max_positions=1024, side_px=256)
"""The nano model's sizes with 256 tokens an image."""
FAITHFUL = replace(WIDE, hidden_size=512, num_layers=8, num_heads=8, mlp_size=1376)
"""As many tokens, and the decoder's shape of the sampling benchmark: a token costs more than a share of the codec's
work, as in real models."""


@contextmanager
def serve(settings: Mapping[str, object]) -> Iterator[str]:
    """Yield the address of ``python -m serve_apps`` with these keys, until the block ends."""
    port = find_free_port()
    # Keys that are not set keep the server's defaults.
    words = [f"{key}={value}" for key, value in settings.items() if value not in ("", None)]
    command = [sys.executable, "-m", "serve_apps", *words, f"port={port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        try:
            # It says so when the models are loaded and requests are taken.
            for line in process.stdout:
                lines.append(line.rstrip())
                if line.startswith("open http"):
                    break
            else:
                raise InputError(f"the server did not start: {' '.join(lines)[-600:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate(timeout=120)


def write_random_model(folder: Path, preset: NanoPreset) -> str:
    """Write a base with random weights, which can be both roles: what an answer costs does not depend on weights.

    Args:
        folder: Where it is written.
        preset: Sizes.

    Returns:
        The folder.
    """
    words = ["move", "the", "red", "cup", "left", "put", "it", "in", "the", "bowl"]
    write_random_base(folder, words=tuple(dict.fromkeys(words)), preset=preset)
    return str(folder)


class Library:
    """Give a server's answer in this process: from an encoded image to another."""

    def __init__(self, fdm: str, idm: str, base: str | None) -> None:
        self.codec = load_codec(base or fdm)
        self._fdm = CodeForward(load_role(fdm, base=base), self.codec)
        self._idm = CodeInverse(load_role(idm, base=base), self.codec)
        self.tokens_per_image = self.codec.tokens_per_image

    def answer(self, image: bytes, action: str, seed: int, best_of: int) -> tuple[bytes, Prediction]:
        """Predict the image after an action.

        Args:
            image: The encoded source.
            action: The action's words.
            seed: Of the candidates.
            best_of: Number of candidates.

        Returns:
            The best candidate as PNG, and the prediction.
        """
        pixels_HWC = fit_square(decode_image(image, "image", MAX_PIXELS), self.codec.side_px)
        sources = observe_codes(self.codec.encode(pixels_HWC[None]).tolist(), self.codec)
        (prediction,) = predict_observations(
            self._fdm, self._idm, sources, [action], search=Search(num_candidates=best_of), seed=seed
        )
        return encode_png(self.codec.decode(np.array([prediction.best.codes]))[0]), prediction
