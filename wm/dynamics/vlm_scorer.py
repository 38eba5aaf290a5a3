"""Score actions by any vision-language model of transformers that reads pixels: log p(action | two images).

One adapter over ``AutoModelForImageTextToText`` and the model's own processor and chat template (Qwen2-VL,
Qwen2.5-VL, the thinker of Qwen2.5-Omni, LLaVA, LLaVA-NeXT, LLaVA-Interleave, Janus, …). Such a model has no image
codes, so it can score actions for the preference probe, and neither propose nor predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wm.dynamics.idm import ScoredAction
from wm.dynamics.scoring import check_equal_lengths
from wm.dynamics.vlm_rows import Row, check_pixels, score_rows
from wm.errors import InputError
from wm.images import Pixels
from wm.models.chat_templates import check_chat_template
from wm.models.config_bounds import check_config
from wm.models.folder_checks import check_no_code, neutralise, read_json, refusing
from wm.models.folders import quiet_transformers
from wm.models.tensor_checks import check_amount, count_numbers
from wm.models.unreadable import check_folder_exists, explain_unreadable
from wm.models.weights import list_tensors
from wm.sampling.batches import halving

PROMPT = (
    "The first image shows a scene before an action, the second one the same scene after it. "
    "Which action was done? Answer with the action alone."
)
"""The question, after the two images; ours, the paper does not print one for these models."""
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class VLMScorer:
    """``model`` in evaluation mode, ``processor`` with a chat template. Evaluation only; no gradients."""

    model: Any
    processor: Any
    prompt: str = PROMPT

    @torch.no_grad()
    def score_actions(
        self,
        source_BHWC: Sequence[Pixels] | Pixels,
        target_BHWC: Sequence[Pixels] | Pixels,
        actions: Sequence[str],
        *,
        batch_size: int = 8,
    ) -> list[ScoredAction]:
        """Score each action and the end token after both images and the prompt.

        Rows are padded on the right, so neither their order nor their batch changes a score, up to rounding.

        Args:
            source_BHWC: uint8 RGB of any size, or lists of (H, W, 3).
            target_BHWC: The same, as many.
            actions: One a row.
            batch_size: Rows of a pass; halved, with a warning in the log, where memory does not suffice.

        Returns:
            Sums of log-probabilities in nats, normalised over the complete vocabulary in float32, or in the model's
            type if that is wider.

        Raises:
            InputError: For other images, and for an action that is empty or holds a special token.
        """
        check_equal_lengths(sources=len(source_BHWC), targets=len(target_BHWC), actions=len(actions))
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        # Checked before the first pass: the last image may be the wrong one.
        for name, images in (("source", source_BHWC), ("target", target_BHWC)):
            for image in images:
                check_pixels(name, image)
        scores: list[ScoredAction] = []

        def score(start: int, stop: int) -> None:
            scores.extend(self._score(source_BHWC[start:stop], target_BHWC[start:stop], actions[start:stop]))

        halving(score, len(actions), batch_size)
        return scores

    def _score(self, sources: Any, targets: Any, actions: Sequence[str]) -> list[ScoredAction]:
        # The same for all rows: the images differ, their placeholders do not.
        prefix = self._prefix()
        rows = [
            Row(prefix, [source, target], action)
            for source, target, action in zip(sources, targets, actions, strict=True)
        ]
        return score_rows(self.model, self.processor, rows)

    def _prefix(self) -> str:
        """Write the chat with both images and the prompt, up to where the answer begins."""
        text: str = self.processor.apply_chat_template(self._chat(), add_generation_prompt=True, tokenize=False)
        return text

    def _chat(self) -> list[dict[str, object]]:
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": self.prompt}]
        return [{"role": "user", "content": content}]


def load_vlm_scorer(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prompt: str = PROMPT,
) -> VLMScorer:
    """Load the scorer of a Hugging Face folder (safetensors; nothing is downloaded, no code of the folder is run).

    Args:
        folder: Holds model, processor and chat template.
        device: Where the weights go.
        dtype: Their type.
        prompt: The question, asked after the two images.

    Raises:
        InputError: For a folder of another kind of model, or without processor or chat template.
    """
    path = Path(folder)
    check_folder_exists(path)
    read_json(path / "config.json")
    explain_unreadable(path)
    check_no_code(path)
    # transformers would attach it by itself, unchecked.
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{path} holds an adapter beside a model, expected a model alone: merge it before")
    check_config(read_json(path / "config.json"), path / "config.json")
    with refusing(f"{path} is no model that reads images and text"):
        model, missing = _read_model(path, dtype)
        processor = _read_processor(path)
    # transformers would fill them with random numbers.
    if missing:
        raise InputError(f"{path}: {len(missing)} tensors are missing: {', '.join(missing[:6])}")
    # Without one the model would see a prompt that it was never trained on.
    if not getattr(processor, "chat_template", None):
        raise InputError(f"{path} has no chat template, which the question is asked with")
    if processor.tokenizer.eos_token is None:
        raise InputError(f"{path}: the tokenizer names no end-of-sequence token")
    # Padding is masked, so that any token will do.
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    scorer = VLMScorer(model.to(device).eval(), processor, prompt)
    # Jinja cannot be interrupted here: another process tries the template first.
    tokens = {role: value for role, value in processor.tokenizer.special_tokens_map.items() if isinstance(value, str)}
    check_chat_template(processor.chat_template, scorer._chat(), tokens, path)
    with refusing(f"{path}: the chat template cannot be used"):
        scorer._prefix()
    return scorer


def _read_model(folder: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Load the model; also return the names of tensors that the files do not hold."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config = neutralise(getattr(config, "thinker_config", config))  # of Qwen2.5-Omni only what reads and writes text
    # Built without memory first: a config that asks for far more than the files hold is refused before it is built.
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    check_amount(skeleton, count_numbers(list_tensors(folder)), str(folder))
    if any(folder.glob("shard-*-model-*.safetensors")):  # which transformers would prefer to what was checked
        raise InputError(f"{folder} holds shards of a distributed checkpoint, expected model.safetensors or its shards")
    with quiet_transformers():
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    return model, sorted(report["missing_keys"])


def _read_processor(folder: Path) -> Any:
    """Load the folder's processor; without torchvision its video half cannot be built, and is left out."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import processor_class_from_name

    with quiet_transformers():
        try:
            return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except ImportError:
            processor_class = processor_class_from_name(_read_processor_name(folder))
            if processor_class is None:
                raise
        template = next((_read_template(file) for name in _TEMPLATES if (file := folder / name).is_file()), None)
        parts: dict[str, Any] = dict.fromkeys(processor_class.get_attributes())
        for part, auto in (("tokenizer", AutoTokenizer), ("image_processor", AutoImageProcessor)):
            parts[part] = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # The class checks its parts by kind, and None is none of them.
    images_only = type(
        processor_class.__name__, (processor_class,), {"check_argument_for_proper_class": lambda *_: None}
    )
    return images_only(**parts, chat_template=template or parts["tokenizer"].chat_template)


def _read_template(file: Path) -> str:
    return file.read_text() if file.suffix == ".jinja" else str(read_json(file)["chat_template"])


def _read_processor_name(folder: Path) -> str:
    # Newer files first: versions of transformers have moved the name.
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / file).is_file() and "processor_class" in (values := read_json(folder / file)):
            return str(values["processor_class"])
    return ""
