"""Guidance as each family was trained: its prompts without text and without anything, against plain loops."""

import pytest
import torch
from transformers import GemmaForCausalLM, JanusForConditionalGeneration

from tests.helpers.models_families import CODES, GRID, write_emu3, write_janus, write_liquid
from wm.errors import InputError
from wm.models import flatten, load_model
from wm.sampling import ImageEngine, ImageRequest, build_model_runner, sample_images
from wm.sampling.guidance import guided_prefixes
from wm.sampling.noise import Sampling, uniform_noise
from wm.sampling.speculative import speculate_images

ACTION = "move the red cup"
TEXT_SCALE, IMAGE_SCALE = 3.0, 1.4
SOURCES = {"liquid": [3, 0, 15, 7], "janus": GRID}
WRITERS = {"liquid": write_liquid, "janus": write_janus}


@pytest.fixture(scope="module", params=list(WRITERS))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("guidance") / request.param
    WRITERS[request.param](path)
    return path


@pytest.fixture(scope="module")
def vlm(folder):
    return load_model(folder, dtype=torch.float64)


def forward_prefix(vlm, action=ACTION):
    return flatten(vlm.layout("fdm", source=SOURCES[vlm.family], action=action))


def by_hand(vlm, logits_of, prompts, candidate):
    """Codes of three prompts without a cache, mixed as in InstructPix2Pix, equation 3; the noise of a place is where
    in the cumulative distribution its code is."""
    codes = []
    for noise in uniform_noise(0, candidate, vlm.tokens_per_image):
        sampled = [int(vlm.image_rows[code]) for code in codes]
        full, image, none = (logits_of([*prompt, *sampled]) for prompt in prompts)
        mixed = none + IMAGE_SCALE * (image - none) + TEXT_SCALE * (full - image)
        codes.append(int((torch.softmax(mixed, -1).cumsum(-1) <= noise).sum()))
    return codes


def logits_of_release(folder, vlm):
    """Logits over image codes by transformers' own classes and heads."""
    if vlm.family == "liquid":
        model = GemmaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        return lambda ids: model(input_ids=torch.tensor([ids])).logits[0, -1, -CODES:]
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval()
    num_text = model.config.text_config.vocab_size

    def logits(ids):
        embedded = [
            model.get_input_embeddings()(torch.tensor([token]))
            if token < num_text
            else model.prepare_embeddings_for_image_generation(torch.tensor([[token - num_text]]))[0]
            for token in ids
        ]
        hidden = model.model.language_model(inputs_embeds=torch.cat(embedded)[None]).last_hidden_state
        return model.model.generation_head(hidden[0, -1])

    return logits


def released_prompts(vlm, action=ACTION):
    """Whole, without text, without anything: ids by name, in the order of the authors' own code."""
    tokenizer = vlm.tokenizer
    source = [int(vlm.image_rows[code]) for code in SOURCES[vlm.family]]
    words = tokenizer(action, add_special_tokens=False)["input_ids"]
    names = tokenizer.get_vocab()
    if vlm.family == "liquid":
        bos, boi, eoi, word = (names[name] for name in ("<bos>", "<boi>", "<eoi>", "<unconditional>"))
        before = [bos, boi, *source, eoi]
        return [*before, *words, boi], [*before, word, boi], [bos, word, boi]
    bos, boi, eoi, pad = (names[name] for name in ("<s>", "<begin_of_image>", "<end_of_image>", "<pad>"))
    full = [bos, boi, *source, eoi, *words, boi]
    return full, [bos, boi, *source, eoi, *[pad] * len(words), boi], [bos, *[pad] * (len(full) - 2), boi]


@torch.no_grad()
def test_guided_images_are_those_of_a_plain_loop(folder, vlm):
    count, logits_of, prompts = 4, logits_of_release(folder, vlm), released_prompts(vlm)
    expected = [by_hand(vlm, logits_of, prompts, candidate) for candidate in range(count)]
    prefix, sampling = forward_prefix(vlm), Sampling(guidance_scale=TEXT_SCALE, image_guidance_scale=IMAGE_SCALE)
    assert guided_prefixes(vlm, [prefix]) == [list(prompt) for prompt in prompts]
    assert sample_images(vlm, [prefix], num_candidates=count, sampling=sampling)[0].tolist() == expected
    drafts = torch.tensor([SOURCES[vlm.family]])
    speculation = speculate_images(vlm, [prefix], drafts, num_candidates=count, num_draft_tokens=2, sampling=sampling)
    assert speculation.codes[0].tolist() == expected
    pool = ImageEngine(vlm, build_model_runner(vlm, rows=12))
    pool.add_request(ImageRequest(tuple(prefix), count, sampling))
    images = {}
    while pool.num_unfinished:
        images |= {grown.candidates.start: grown.codes.tolist() for grown in pool.step() if grown.is_complete}
    assert [codes for _, chunk in sorted(images.items()) for codes in chunk] == expected
    # Chameleon's prompts, which were taken for every family's, give other images.
    text = set(vlm.tokenize_action(ACTION))
    chameleon = prompts[0], [token for token in prompts[0] if token not in text], [vlm.bos_id, vlm.boi_id]
    assert [by_hand(vlm, logits_of, chameleon, candidate) for candidate in range(count)] != expected


@torch.no_grad()
def test_mixed_scales_lengths_and_seeds_share_no_prompt(vlm):
    """Requests of other scales, actions and seeds in one batch or pool, plain or by static steps: each is what its own
    prompts give without a cache."""

    def expected(prefix, sampling, seed):
        prompts, codes = [prefix, *vlm.unconditional_prefixes(prefix)], []
        for noise in uniform_noise(seed, 0, vlm.tokens_per_image):
            ids = [int(vlm.image_rows[code]) for code in codes]
            bodies = [vlm.body(torch.tensor([[*prompt, *ids]]))[:, -1] for prompt in prompts]
            full, image, none = (vlm.head(hidden, vlm.image_rows)[0] for hidden in bodies)
            logits = none + sampling.image_guidance_scale * (image - none) + sampling.guidance_scale * (full - image)
            codes.append(int((torch.softmax(logits, -1).cumsum(-1) <= noise).sum()))
        return codes

    prefixes = [forward_prefix(vlm, action) for action in ("cup", "move the red cup the cup", ACTION)]
    seeds = [5, 2**63 - 1, 0]
    scales = [(0.0, 1.0), (1.0, 2.5), (0.0, 0.0), (7.5, 1.5)]
    samplings = [Sampling(guidance_scale=text, image_guidance_scale=image) for text, image in scales]
    images = {s: [expected(p, s, seed) for p, seed in zip(prefixes, seeds, strict=True)] for s in samplings}
    for stepping in ("plain", "static"):
        runner = build_model_runner(vlm, stepping=stepping)
        for sampling in samplings:
            codes = sample_images(vlm, prefixes, num_candidates=1, sampling=sampling, seed=seeds, runner=runner)
            assert codes[:, 0].tolist() == images[sampling], (stepping, sampling)
        pool, keys, codes = ImageEngine(vlm, runner, line_tokens=1), {}, {}
        waiting = [(row, sampling) for row in range(len(prefixes)) for sampling in samplings]
        while waiting or pool.num_unfinished:
            for row, sampling in [waiting.pop()] if waiting else []:
                keys[pool.add_request(ImageRequest(tuple(prefixes[row]), 1, sampling, seeds[row]))] = row, sampling
            codes |= {output.request_id: output.codes[0].tolist() for output in pool.step() if output.is_complete}
        assert codes == {key: images[sampling][row] for key, (row, sampling) in keys.items()}, stepping


def test_liquid_is_guided_as_in_the_authors_text_to_image(tmp_path):
    """``TEXT<boi>`` against ``<unconditional><boi>``: uncond + scale x (cond - uncond)."""
    write_liquid(tmp_path / "liquid")
    vlm = load_model(tmp_path / "liquid", dtype=torch.float64)
    model = GemmaForCausalLM.from_pretrained(tmp_path / "liquid", dtype=torch.float64).eval()
    tokenizer = vlm.tokenizer
    texts = [f"{ACTION} <boi>", "<unconditional><boi>"]
    cond, uncond = ([vlm.bos_id, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts)
    expected = []
    with torch.no_grad():
        for _ in range(vlm.tokens_per_image):
            sides = (model(input_ids=torch.tensor([ids])).logits[0, -1, -CODES:] for ids in (cond, uncond))
            cond_V, uncond_V = sides
            expected.append(int((uncond_V + 7.0 * (cond_V - uncond_V)).argmax()))
            cond, uncond = ([*ids, len(tokenizer) + expected[-1]] for ids in (cond, uncond))
    prefix = [vlm.bos_id, *vlm.tokenize_action(ACTION), vlm.boi_id]
    sampling = Sampling(greedy=True, guidance_scale=7.0)
    assert sample_images(vlm, [prefix], num_candidates=1, sampling=sampling)[0, 0].tolist() == expected


def test_janus_is_guided_as_transformers_generates_images(tmp_path):
    write_janus(tmp_path / "janus")
    vlm = load_model(tmp_path / "janus", dtype=torch.float64)
    model = JanusForConditionalGeneration.from_pretrained(tmp_path / "janus", dtype=torch.float64).eval()
    prefix = [vlm.bos_id, *vlm.tokenize_action(ACTION), vlm.boi_id]
    settings = model.generation_config
    settings.bos_token_id, settings.pad_token_id = vlm.bos_id, vlm.pad_id
    settings.generation_kwargs = {"boi_token_id": vlm.boi_id}
    ids = torch.tensor([prefix])
    codes = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        guidance_scale=5.0,
        do_sample=False,
        generation_config=settings,
    )
    sampling = Sampling(greedy=True, guidance_scale=5.0)
    assert sample_images(vlm, [prefix], num_candidates=1, sampling=sampling)[0, 0].tolist() == codes[0].tolist()


def test_a_padded_action_keeps_its_length_without_text(tmp_path):
    write_liquid(tmp_path / "liquid")
    vlm = load_model(tmp_path / "liquid")
    vlm.action_slot_tokens = 6
    full, image, none = guided_prefixes(vlm, [forward_prefix(vlm)])
    word = vlm.tokenizer.get_vocab()["<unconditional>"]
    assert len(image) == len(full)
    assert image[-7:] == [word, *[vlm.pad_id] * 5, vlm.boi_id]
    assert none == [vlm.bos_id, word, vlm.boi_id]


def test_no_action_holds_the_unconditional_word(tmp_path):
    write_liquid(tmp_path / "liquid")
    vlm = load_model(tmp_path / "liquid")
    word = vlm.tokenizer.get_vocab()["<unconditional>"]
    assert word not in vlm.text_rows.tolist()
    with pytest.raises(InputError, match="holds the reserved token '<unconditional>'"):
        forward_prefix(vlm, "move <unconditional> cup")


def test_chameleon_leaves_out_what_it_leaves_out(tiny_base):
    vlm = load_model(tiny_base)
    prefix = flatten(vlm.layout("fdm", source=[3, 0, 15, 7], action="move the cup"))
    source = [int(vlm.image_rows[code]) for code in (3, 0, 15, 7)]
    image = [vlm.bos_id, vlm.boi_id, *source, vlm.eoi_id, vlm.boi_id]
    assert guided_prefixes(vlm, [prefix, prefix]) == [prefix, prefix, image, image, *[[vlm.bos_id, vlm.boi_id]] * 2]


def test_what_has_no_unconditional_prompt_is_refused(tmp_path):
    write_emu3(tmp_path / "emu3")
    emu3 = load_model(tmp_path / "emu3")
    with pytest.raises(InputError, match="guidance is not supported for emu3"):
        guided_prefixes(emu3, [flatten(emu3.layout("fdm", source=GRID, action=ACTION))])
    write_liquid(tmp_path / "liquid")
    tokenizer = tmp_path / "liquid" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<unconditional>", "<unused1>"))
    liquid = load_model(tmp_path / "liquid")
    message = "guidance is not supported for .*liquid: its tokenizer has no '<unconditional>'"
    for sampling in (Sampling(guidance_scale=2.0), Sampling(image_guidance_scale=2.0)):
        with pytest.raises(InputError, match=message):
            sample_images(liquid, [forward_prefix(liquid)], num_candidates=1, sampling=sampling)
    sample_images(liquid, [forward_prefix(liquid)], num_candidates=1)
