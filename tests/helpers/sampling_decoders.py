"""Tiny models of decoders that the fast runner does not know, and plain loops that sample from any model."""

import copy

import torch
import transformers
from peft import LoraConfig, get_peft_model

from tests.helpers.models_families import ACTION, CODES, liquid_tokenizer
from tests.helpers.models_reference import lively
from wm.models import flatten
from wm.models.families.liquid import LiquidVLM
from wm.models.vlm import Facts
from wm.sampling import Sampling, invert_cdf, probabilities, uniform_noise

SETTINGS = [
    Sampling(),
    Sampling(greedy=True),
    Sampling(temperature=0.7, top_k=9, top_p=0.95),
    Sampling(guidance_scale=2.0, image_guidance_scale=1.5),
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
MIXTURE = {"num_experts_per_tok": 2, "head_dim": 8}
DECODERS = {
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None} | MIXTURE),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16, "decoder_sparse_step": 1} | MIXTURE),
    # Shorter than every prompt here, so that its begin is out of sight.
    "mistral_window": ("Mistral", {"sliding_window": 5}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 4, "sliding_window_pattern": 2}),
}


def build_decoder(name):
    """A model of a decoder that the fast runner does not know, in the place of Liquid's Gemma."""
    kind, more = DECODERS[name]
    tokenizer = liquid_tokenizer()
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer) + CODES, **SIZES, **more)
    torch.manual_seed(0)
    module = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).double().eval()
    # Grouped products of experts know no float64.
    if kind in ("Mixtral", "Qwen3Moe"):
        module.set_experts_implementation("eager")
    return lively(LiquidVLM(module, tokenizer, Facts("base", "codec", 4, CODES)))


def source_of(vlm, first):
    return [(first + 3 * index) % vlm.num_codes for index in range(vlm.tokens_per_image)]


def prefixes_of(vlm, count=4):
    """Prompts of several lengths."""
    actions = ["put", ACTION, "take the block", "put"]
    return [
        flatten(vlm.layout("fdm", source=source_of(vlm, row), action=actions[row % len(actions)]))
        for row in range(count)
    ]


def sample_slowly(vlm, prefix, candidate, sampling, seed):
    """One image by complete forward passes of transformers' own causal model, a code at a time."""
    ids, codes = list(prefix), []
    noise_N = uniform_noise(seed, candidate, vlm.tokens_per_image)
    for position in range(vlm.tokens_per_image):
        with torch.no_grad():
            logits_V = vlm.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        probs_1V = probabilities(logits_V[None, vlm.image_rows], sampling)
        codes.append(int(invert_cdf(probs_1V, torch.tensor([noise_N[position]]))))
        ids.append(int(vlm.image_rows[codes[-1]]))
    return codes


def adapt(vlm, **settings):
    """``vlm`` with a random adapter far from zero: a copy."""
    adapted = copy.copy(vlm)
    torch.manual_seed(1)
    config = {"r": 4, "lora_alpha": 8, "target_modules": r".*(q|v|o)_proj", "init_lora_weights": False} | settings
    adapted.module = get_peft_model(copy.deepcopy(vlm.module), LoraConfig(**config)).eval()
    return adapted
