"""Train a nano base from scratch: a VQGAN, then a Chameleon on captioned pairs of images, no action among them; or a
Qwen3-VL that reads pixels, on the same pairs.

It stands in for the pre-trained checkpoint (Anole-7B and the like) that a laptop cannot hold.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.files.mirror import publish, shown
from wm.paths import OutputPath
from wm.runs import Run, RunRecord, read_run, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from wm.models import ImageCodec
    from wm.models.card import CardFacts
    from wm.models.families.chameleon import ChameleonVLM
    from wm.nano.preset import NanoPreset
    from wm.nano.train_codec import CodecSettings
    from wm.nano.train_language_model import PretrainSettings


class PretrainRecipe(Recipe):
    """Sizes of the data and lengths of the trainings."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"reads"})
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "threads": "num_threads",
        "images": "num_images",
        "documents": "num_documents",
        "steps": "max_steps",
        "batch": "batch_size",
    }

    out: OutputPath
    """Folder; the base (codec, language model, tokenizer) is out/model."""
    reads: Literal["codes", "pixels"] = "codes"
    """codes: a Chameleon with its codec, for both roles. pixels: a Qwen3-VL with its processor, an inverse model alone;
    keys of the codec and action_slot_tokens are not used."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the documents and of both trainings."""
    num_threads: int = Field(default=1, ge=1)
    """CPU threads. Two are 1.6 times as fast on two idle cores, but many times slower as soon as anything else runs
    there (every small operation waits for both), and sums then depend on their number."""
    num_images: int = Field(default=4000, ge=64)
    """Images that the codec is trained on."""
    encoder_steps: int = Field(default=300, ge=1)
    """Training steps of the codec's encoder and codebook."""
    decoder_steps: int = Field(default=500, ge=1)
    """Training steps of the codec's decoder."""
    num_documents: int = Field(default=8000, ge=64)
    """Captioned pairs of images that the language model is trained on."""
    max_steps: int = Field(default=1400, ge=1)
    """Training steps of the language model."""
    batch_size: int = Field(default=48, ge=1)
    """Documents a step."""
    action_slot_tokens: int = Field(default=9, ge=0)
    """Text between two images is padded to so many tokens, so that their distance is constant; 0 = not padded."""


def run(recipe: PretrainRecipe, *, dry_run: bool = False) -> RunRecord:
    """Train codec and language model and write ``out/model``.

    Args:
        recipe: Sizes and lengths.
        dry_run: Print what would be done.

    Returns:
        The run's record; empty on a dry run.
    """
    stage = Run(recipe.out, "pretrain", recipe)
    is_complete = stage.is_complete()
    if dry_run or is_complete:
        of_codec = f"codec {recipe.encoder_steps} + {recipe.decoder_steps} steps, " if recipe.reads == "codes" else ""
        print(
            f"pretrain: {'already complete in' if is_complete else 'would train into'} {shown(recipe.out)}/model: "
            f"{of_codec}language model {recipe.max_steps} steps"
        )
        for line in [] if is_complete else schedule_warnings(recipe):
            print(f"warning: {line}")
        return (read_run(recipe.out) or {}) if is_complete else {}
    stage.start()
    for line in schedule_warnings(recipe):
        print(f"warning: {line}")
    import torch

    from wm.models import save_model
    from wm.models.card import write_card

    # Bootstrap runs the stages that follow in this process: its threads are set back.
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.num_threads)
    try:
        # No codec: the vision tower is trained with the rest.
        if recipe.reads == "pixels":
            return _pretrain_pixels(recipe, stage)
        with stage.timed("codec_s"):
            codec, codec_figures = _load_or_train_codec(recipe)
        with stage.timed("documents_s"):
            vlm, ids_MT = _build_documents(recipe, codec)
        with stage.timed("language_model_s"):
            figures = _train_language_model(recipe, vlm, ids_MT)
    finally:
        torch.set_num_threads(threads)
    save_model(vlm, Path(recipe.out) / "model", kind="base", codec=codec, recipe_digest=recipe.digest())
    size = sum(parameter.numel() for parameter in vlm.module.parameters())
    write_card(Path(recipe.out) / "model", _describe(recipe, figures))
    record = stage.finish(
        {"parameters": size, "documents": recipe.num_documents, "codes_used": int(codec_figures["codes_used"])},
        figures={"codec": codec_figures, "language_model": figures},
    )
    print(
        f"pretrain: base of {size / 1e6:.2f} M parameters in {shown(recipe.out)}/model "
        f"(codes in use {codec_figures['codes_used']:.0f}, loss {figures['loss']:.3f} nats a token)"
    )
    return record


def _describe(recipe: PretrainRecipe, figures: Mapping[str, float]) -> "CardFacts":
    """Describe the base for its card."""
    from wm.models.base_facts import name_of
    from wm.models.card import CardFacts, CardFigure

    return CardFacts(
        title=name_of(Path(recipe.out) / "model"),
        data_note="Everything is rendered by wm.nano.world: "
        + (f"{recipe.num_images:,} images for the codec, " if recipe.reads == "codes" else "")
        + f"{recipe.num_documents:,} captioned pairs for the language model; no other data.",
        recipe=recipe.model_dump(mode="json"),
        figures=[
            CardFigure("loss of the language model, nats a token", f"{figures['loss']:.4f}", None, "its last steps")
        ],
        failures=["It knows one toy world and its words: of any other image or wording its answers mean nothing."],
        unknown=["How good it is on images that it was not trained on."],
    )


def schedule_warnings(recipe: PretrainRecipe) -> list[str]:
    """Return a line for each training that is too short for its warm-up."""
    from wm.nano.train_codec import codec_warnings
    from wm.nano.train_language_model import pretrain_warning

    line = pretrain_warning(_pretrain_settings(recipe))
    # A base that reads pixels has no codec to train.
    codec = codec_warnings(_codec_settings(recipe)) if recipe.reads == "codes" else []
    return [*codec, *([line] if line else [])]


def _codec_settings(recipe: PretrainRecipe) -> "CodecSettings":
    from wm.nano.train_codec import CodecSettings

    return CodecSettings(encoder_steps=recipe.encoder_steps, decoder_steps=recipe.decoder_steps, seed=recipe.seed)


def _pretrain_settings(recipe: PretrainRecipe) -> "PretrainSettings":
    from wm.nano.train_language_model import PretrainSettings

    return PretrainSettings(steps=recipe.max_steps, batch=recipe.batch_size, seed=recipe.seed)


def _preset(recipe: PretrainRecipe) -> "NanoPreset":
    from wm.nano.preset import NanoPreset

    return NanoPreset(action_slot_tokens=recipe.action_slot_tokens)


def _load_or_train_codec(recipe: PretrainRecipe) -> tuple["ImageCodec", dict[str, float]]:
    """Train the codec, or load it where a killed run had finished it; returns it with its figures."""
    import json

    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file

    from wm.models import ImageCodec
    from wm.nano.preset import build_codec
    from wm.nano.train_codec import train_codec
    from wm.nano.world.scenes import random_camera, random_state, render

    blank = build_codec(_preset(recipe))
    weights, facts = Path(recipe.out) / "codec.safetensors", Path(recipe.out) / "codec.json"
    if facts.exists():
        blank.vqgan.load_state_dict(load_file(weights))
        return ImageCodec(blank.vqgan, blank.scale), json.loads(facts.read_text())
    # A stream of its own: another number of documents leaves these images as they are.
    rng = np.random.default_rng([recipe.seed, 21])
    pixels = np.stack([render(random_state(rng), random_camera(rng), rng) for _ in range(recipe.num_images)])
    vqgan = blank.vqgan.requires_grad_(True)
    with progress_bar(recipe.encoder_steps + recipe.decoder_steps, "step", "codec") as bar:

        def report(phase: str, _step: int, _steps: int, loss: float) -> None:
            bar.set_description(phase, refresh=False)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()

        figures = train_codec(
            vqgan, torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), _codec_settings(recipe), report
        )
    save_file(vqgan.state_dict(), weights)
    publish(weights)
    write_json(facts, figures)  # after the weights: where it is, they are complete
    publish(facts)
    return ImageCodec(vqgan, blank.scale), figures


def _build_documents(recipe: PretrainRecipe, codec: "ImageCodec") -> tuple["ChameleonVLM", "Tensor"]:
    """Build an untrained language model and its documents as ids (M, T): image, caption, image, or image, image,
    caption."""
    import numpy as np
    import torch

    from wm.models import pack
    from wm.nano.preset import build_nano
    from wm.nano.world.actions import vocabulary
    from wm.nano.world.documents import sample_document

    rng = np.random.default_rng([recipe.seed, 22])
    documents = []
    with progress_bar(recipe.num_documents, "doc", "documents") as bar:
        for _ in range(recipe.num_documents):
            documents.append(sample_document(rng))
            bar.update()
    # All at once, which the codec encodes in batches.
    first_MN = codec.encode(np.stack([document[1] for document in documents])).tolist()
    second_MN = codec.encode(np.stack([document[3] for document in documents])).tolist()
    # For the initial weights; the documents have a generator of their own.
    torch.manual_seed(recipe.seed)
    vlm, _ = build_nano(vocabulary(), _preset(recipe), codec=codec)
    # Images and captions in the layouts of both tasks, so that fine-tuning finds what it knows.
    segments = [
        vlm.layout("idm" if document[0] == "understand" else "fdm", source=first, action=document[2], target=second)
        for document, first, second in zip(documents, first_MN, second_MN, strict=True)
    ]
    return vlm, pack(segments, vlm.pad_id)[0]


def _train_language_model(recipe: PretrainRecipe, vlm: "ChameleonVLM", ids_MT: "Tensor") -> dict[str, float]:
    from wm.nano.train_language_model import pretrain

    with progress_bar(recipe.max_steps, "step", "language model") as bar:

        def report(_step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        return pretrain(vlm, ids_MT, _pretrain_settings(recipe), report)


def _pretrain_pixels(recipe: PretrainRecipe, stage: Run) -> RunRecord:
    """Train the base that reads pixels and write ``out/model``."""
    from wm.models.card import write_card
    from wm.nano.pixel_preset import write_pixel_base
    from wm.nano.train_pixel_model import build_untrained, pretrain_pixels, sample_captioned_pairs
    from wm.nano.world.actions import vocabulary

    with stage.timed("documents_s"), progress_bar(recipe.num_documents, "doc", "documents") as bar:
        documents = sample_captioned_pairs(recipe.num_documents, recipe.seed, bar.update)
    # A stream of its own for the weights: another number of documents leaves them as they are.
    model = build_untrained(recipe.seed, Path(recipe.out))
    with stage.timed("language_model_s"), progress_bar(recipe.max_steps, "step", "language model") as bar:

        def report(_step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        figures = pretrain_pixels(model, documents, _pretrain_settings(recipe), report)
    # The model last: where it is, it is complete.
    out = Path(recipe.out) / "model"
    write_pixel_base(model.inner, out, words=vocabulary(), recipe_digest=recipe.digest())
    write_card(out, _describe(recipe, figures))
    size = sum(parameter.numel() for parameter in model.module.parameters())
    record = stage.finish({"parameters": size, "documents": recipe.num_documents}, figures={"language_model": figures})
    print(
        f"pretrain: base of {size / 1e6:.2f} M parameters that reads pixels in {shown(recipe.out)}/model "
        f"(loss {figures['loss']:.3f} nats a caption's token)"
    )
    return record


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(PretrainRecipe, run, name="pretrain", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
