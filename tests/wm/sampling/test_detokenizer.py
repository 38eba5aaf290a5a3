"""Increments of growing texts, with tokenizers of the kinds that families have: whatever the tokens, they join."""

import random
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel, WordPiece
from transformers import PreTrainedTokenizerFast

from wm.sampling.detokenizer import IncrementalDetokenizer

BYTES = [f"<0x{value:02X}>" for value in range(256)]


def byte_level():
    """As GPT-2's, of which Chameleon's, Emu3's and Janus' tokenizers are kin: every token is some bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({name: row for row, name in enumerate([*alphabet, "Ġput", "Ġthe", "cup"])}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, {}


def byte_fallback():
    """As Llama's and Gemma's: words with ▁ for the space, and single bytes for what is no word."""
    words = ["▁", "▁put", "▁the", "cup", "s", "▁red", "\n"]
    tokenizer = Tokenizer(BPE({name: row for row, name in enumerate([*BYTES, *words])}, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer, {}


def words():
    """As the nano world's: joined by spaces."""
    return Tokenizer(WordLevel({name: row for row, name in enumerate(("put", "the", "cup", "é"))}, "put")), {}


def cleaned():
    """Whose spaces before punctuation are taken out afterwards."""
    names = ("[UNK]", "put", "the", "##s", ".", ",", "'", "n't", "'m", "do", "!")
    tokenizer = Tokenizer(WordPiece({name: row for row, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer, {"clean_up_tokenization_spaces": True}


class Speaking:
    """What the detokenizer needs of a model."""

    def __init__(self, build):
        tokenizer, settings = build()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, **{"clean_up_tokenization_spaces": False} | settings
        )

    def detokenize(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def rows(self, text):
        """Vocabulary ids of names with | between them."""
        return [self.tokenizer.get_vocab()[name] for name in text.split("|")]


@pytest.mark.parametrize("build", [byte_level, byte_fallback, words, cleaned])
def test_increments_of_any_tokens_join_to_the_text(build):
    model, generator = Speaking(build), random.Random(0)
    size = len(model.tokenizer.get_vocab())
    # Bytes of characters of 1 to 4 bytes, white space of one and of three, and some that are no character.
    likely = list("aé€🙂 \n\u3000".encode())
    for _ in range(1500):
        texts, ids = IncrementalDetokenizer(model), []
        increments = ""
        for _ in range(generator.randint(0, 9)):
            token = generator.choice(likely) if build is byte_fallback and generator.random() < 0.5 else -1
            ids.append(token if token >= 0 else generator.randrange(size))
            increments += texts.add(ids[-1])
        assert increments + texts.end() == model.detokenize(ids), ids


@pytest.mark.parametrize("build", [byte_level, byte_fallback, words])
def test_texts_of_tokens_join_where_the_bytes_are_characters(build):
    model, generator = Speaking(build), random.Random(1)
    size = len(model.tokenizer.get_vocab())
    for _ in range(500):
        ids = [generator.randrange(size) for _ in range(generator.randint(1, 6))]
        if build is not words:
            ids = [token for _ in range(6) for token in encoded(model, generator.choice("aé€🙂 x"))]
        texts, text = IncrementalDetokenizer(model), ""
        for token in ids:
            text += texts.of(token)
            texts.add(token)
        assert text == model.detokenize(ids), ids


def encoded(model, char):
    """Its bytes, a token each."""
    vocabulary = model.tokenizer.get_vocab()
    if BYTES[0] in vocabulary:
        return [vocabulary[BYTES[value]] for value in char.encode()]
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(char)
    return [vocabulary[name] for name in "".join(part for part, _ in split)]


def test_increments_are_released_when_final():
    """By hand: leading white space goes, a space comes with its word, a character with its last byte."""
    model = Speaking(byte_fallback)
    texts = IncrementalDetokenizer(model)
    tokens = model.rows("▁put|▁|<0xE2>|<0x82>|<0xAC>|cup|▁the")
    increments = []
    for token in tokens:
        own = texts.of(token)
        increments.append((own, texts.add(token)))
    assert increments == [("put", "put"), ("", ""), ("", ""), ("", ""), (" €", ""), ("cup", " €cup"), (" the", " the")]
    assert texts.of(model.rows("s")[0]) == "s" and texts.name(tokens[2]) == "<0xE2>"
    assert texts.end() == ""


def test_words_come_at_once_where_nothing_can_change_them():
    model = SimpleNamespace(tokenizer=Speaking(words).tokenizer, detokenize=Speaking(words).detokenize)
    texts = IncrementalDetokenizer(model)
    assert [texts.add(token) for token in (0, 1, 2)] == ["put", " the", " cup"]
