"""Answer a chat by a causal language model of transformers in a local folder, with the folder's own chat template.

Nothing is downloaded, no code of the folder is run. Not known here: what is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from wm.errors import InputError
from wm.models.chat_templates import check_chat_template
from wm.models.config_bounds import check_config
from wm.models.folder_checks import check_no_code, neutralise, read_json, refusing
from wm.models.folders import quiet_transformers
from wm.models.tensor_checks import check_amount, count_numbers
from wm.models.unreadable import check_folder_exists, explain_unreadable
from wm.models.weights import list_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = [{"role": "user", "content": "Hello"}]


class ChatAnswer(NamedTuple):
    """What the model wrote."""

    text: str
    is_cut_off: bool  # whether it ended at the limit of tokens
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class ChatModel:
    """``model`` in evaluation mode, ``tokenizer`` with a chat template."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    @torch.inference_mode()
    def answer(
        self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, temperature: float | None = None, seed: int = 0
    ) -> ChatAnswer:
        """Write the next message of a chat.

        Args:
            messages: With ``role`` and ``content``.
            max_tokens: Of the answer.
            temperature: 0: the likeliest token each time; None: as the folder's ``generation_config.json`` says.
            seed: Of the sampling.

        Returns:
            The answer; equal settings and seeds give equal ones.
        """
        inputs = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        sampling: dict[str, object] = {}
        if temperature is not None:
            sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        # transformers samples with torch's own generator, which is left as it was.
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), quiet_transformers():
            torch.manual_seed(seed)
            # Some tokenizers give more, such as token types, which most models refuse.
            prompt = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
            output = self.model.generate(**prompt, max_new_tokens=max_tokens, pad_token_id=self._pad_id(), **sampling)
        prompt_tokens = int(inputs["input_ids"].shape[1])
        ids = output[0, prompt_tokens:].tolist()
        is_cut_off = len(ids) >= max_tokens and ids[-1] not in self._end_ids()
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return ChatAnswer(text, is_cut_off, prompt_tokens, len(ids))

    def _pad_id(self) -> int | None:
        # Nothing is padded in a batch of one: any token will do.
        tokenizer = self.tokenizer
        pad_id: int | None = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return pad_id

    def _end_ids(self) -> set[int]:
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ids = ends if isinstance(ends, list) else [ends]
        return {token for token in (*ids, self.tokenizer.eos_token_id) if token is not None}


def load_chat_model(folder: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ChatModel:
    """Load a Hugging Face folder of a causal language model (safetensors) with a chat template.

    Args:
        folder: Holds model, tokenizer and chat template.
        device: Where the weights go.
        dtype: Their type.

    Returns:
        The model.

    Raises:
        InputError: For a folder of another kind of model, or without chat template.
    """
    path = Path(folder)
    check_folder_exists(path)
    config_values = read_json(path / "config.json")
    explain_unreadable(path)
    check_no_code(path)
    # transformers would attach it by itself, unchecked.
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{path} holds an adapter beside a model, expected a model alone: merge it before")
    check_config(config_values, path / "config.json")
    with refusing(f"{path} is no causal language model"):
        model, tokenizer = _read(path, dtype)
    if not tokenizer.chat_template:
        raise InputError(f"{path} has no chat template, which the question is asked with: is it an instruction model?")
    # Jinja cannot be interrupted here: another process tries the template first.
    tokens = {role: value for role, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    check_chat_template(tokenizer.chat_template, _PROBE, tokens, path)
    with refusing(f"{path}: the chat template cannot be used"):
        tokenizer.apply_chat_template(_PROBE, add_generation_prompt=True, tokenize=False)
    model.to(device).eval()
    return ChatModel(model, tokenizer)


def _read(folder: Path, dtype: torch.dtype) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = neutralise(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    # Built without memory first: a config that asks for far more than the files hold is refused before it is built.
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    check_amount(skeleton, count_numbers(list_tensors(folder)), str(folder))
    with quiet_transformers():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # transformers would fill them with random numbers.
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{folder}: {len(missing)} tensors are missing: {', '.join(missing[:6])}")
    return model, tokenizer
