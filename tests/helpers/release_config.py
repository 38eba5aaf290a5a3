"""A folder that says what Anole-7B is and holds none of its weights."""

import json
from pathlib import Path

from transformers import ChameleonConfig

from wm.nano.preset import TINY_WORDS, build_tokenizer

NUM_CODES = 8192
VOCABULARY = 65_536


def write_release_config(folder: Path, num_layers: int = 32) -> Path:
    """Configuration (transformers' defaults are Chameleon-7B's) and a tokenizer with all image tokens."""
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer(TINY_WORDS, NUM_CODES)
    tokenizer.save_pretrained(folder)
    config = ChameleonConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=num_layers,
        vq_config={"resolution": 512, "num_embeddings": NUM_CODES},
        vocabulary_map=dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])),
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder
