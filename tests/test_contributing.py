"""The worked example of CONTRIBUTING.md, run as it stands there."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.code_calls import verify
from tests.helpers.models_families import CODES, seeded, tiny_codec, word_tokenizer
from wm.dynamics import Sampling, propose_actions, sample_observations
from wm.models import FAMILIES, flatten, load_codec, load_model, save_model
from wm.models.folder_writing import write_codec_folder

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text().partition("## Adding a data-set layout")[0]
SOURCE, TARGET = [3, 0, 15, 7], [3, 1, 15, 9]


@pytest.fixture
def example(monkeypatch):
    """The new file as a module, and its line in the table."""
    file, line = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module = ModuleType("wm.models.families.llama_vq")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(file, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setattr(sys.modules["wm.models.families"], "FAMILIES", table := dict(FAMILIES))
    exec(line, {"FAMILIES": table})


def test_the_example_is_a_whole_family(example, tmp_path):
    folder = tmp_path / "model"
    special = ["<s>", "</s>", "<pad>", "<unk>", "<boi>", "<eoi>"]
    tokenizer = word_tokenizer(special, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(tokenizer) + CODES,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    theirs = seeded(lambda: LlamaForCausalLM(config)).double()
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_codec_folder(tiny_codec(), folder / "vqgan")

    vlm = load_model(folder, dtype=torch.float64)
    assert vlm.family == "llama_vq"
    assert load_codec(folder).codec_id == vlm.codec_id
    ids = flatten(vlm.layout("fdm", source=SOURCE, action="put the cup"))
    drawn = sample_observations(vlm, [SOURCE], ["put the cup"], num_candidates=1, sampling=Sampling(greedy=True))
    for code in drawn[0, 0].tolist():
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([ids])).logits[0, -1]
        assert int(logits[vlm.image_rows].argmax()) == code
        ids.append(int(vlm.image_rows[code]))
    assert verify(vlm, SOURCE, "put", [TARGET])[0].score.logprob < 0
    assert propose_actions(vlm, [SOURCE], [TARGET], max_new_tokens=2)[0].num_tokens <= 3
    save_model(vlm, tmp_path / "again", kind="full", task="fdm")
    assert torch.equal(load_model(tmp_path / "again").inner.lm_head.weight.double(), theirs.lm_head.weight)
