"""Steps of fixed shapes against plain decoding, token for token; what they must not do; what happens when they fail.

The same step is what a GPU records, so it is tested here as calls; the last tests need a GPU
(``CUDA_VISIBLE_DEVICES=0 pytest tests/wm/sampling/kernels/test_cuda_graphs.py``).
"""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.models_families import write_emu3, write_janus, write_liquid
from tests.helpers.models_reference import lively
from wm.models import flatten, load_model
from wm.nano.preset import TINY, TINY_WORDS, NanoPreset, build_nano
from wm.sampling import Decoder, Sampling, sample_images
from wm.sampling.guidance import Candidates
from wm.sampling.kernels import cuda_graphs, triton_attention
from wm.sampling.kernels.cuda_graphs import StaticSteps, compiled_parts
from wm.sampling.slots import Slots

PRESET = NanoPreset(**{**vars(TINY), "channel_multiplier": (1, 1, 1)})
"""16 tokens an image."""
ACTIONS = ("put the cup", "take", "move the red block to the left", "up")
SAMPLINGS = {
    "plain": Sampling(),
    "filtered": Sampling(temperature=0.7, top_k=9, top_p=0.95),
    "greedy": Sampling(greedy=True),
    "guided": Sampling(guidance_scale=2.0, image_guidance_scale=1.5),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One of each family, and Chameleon with Swin norm; 16 tokens an image, Emu3's with row ends."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    found = {"chameleon": lively(build_nano(TINY_WORDS, PRESET)[0])}
    swin, _ = build_nano(TINY_WORDS, PRESET)
    swin.module.config.swin_norm = True
    found["swin"] = lively(swin_of(swin))
    for name, write in {"liquid": write_liquid, "emu3": write_emu3, "janus": write_janus}.items():
        write(folder / name)
        found[name] = load_model(folder / name)
    return found


def swin_of(vlm):
    """The same model with the layers that transformers has for Swin norm."""
    vlm.module = type(vlm.module)(vlm.module.config).eval()
    del vlm.module.model.vqmodel
    return vlm


def prefixes_of(vlm, count):
    length = vlm.tokens_per_image
    sources = torch.randint(0, 16, (count, length), generator=torch.Generator().manual_seed(7)).tolist()
    return [flatten(vlm.layout("fdm", source=source, action=ACTIONS[row % 4])) for row, source in enumerate(sources)]


def both(vlm, dtype, count=3, **settings):
    """Codes by plain decoding and by steps of fixed shapes."""
    vlm.module.to(dtype)
    prefixes = prefixes_of(vlm, count)
    return [
        sample_images(vlm, prefixes, decoder=Decoder(vlm, stepping=stepping), **settings)
        for stepping in ("plain", "static")
    ]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("family", ["chameleon", "swin", "liquid", "emu3", "janus"])
def test_codes_are_those_of_plain_decoding(models, family, sampling, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "BUCKET", 5)
    if family == "emu3" and sampling == "guided":
        pytest.skip("no guidance for this family")
    for dtype in (torch.float64, torch.float32):
        plain, static = both(models[family], dtype, num_samples=8, sampling=SAMPLINGS[sampling], seed=[4, 5, 6])
        assert torch.equal(static, plain)
    assert sampling == "greedy" or len({tuple(codes) for codes in plain.flatten(0, 1).tolist()}) > 8
    assert Decoder(models[family]).view.norm_after == (family == "swin")


@pytest.mark.parametrize("bucket", [1, 4, 15, 16, 128])
@pytest.mark.parametrize("num_samples", [1, 8])
def test_buckets_change_nothing(models, bucket, num_samples, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "BUCKET", bucket)
    plain, static = both(models["chameleon"], torch.float32, count=1, num_samples=num_samples, seed=2)
    assert torch.equal(static, plain)


def test_no_more_is_read_than_the_bucket_holds(models, monkeypatch):
    seen = []
    monkeypatch.setattr(cuda_graphs, "BUCKET", 6)
    attend = cuda_graphs.attend_shared

    def watch(query, prefix_keys, prefix_values, own_keys, own_values, **hidden):
        seen.append(own_keys.shape[2])
        return attend(query, prefix_keys, prefix_values, own_keys, own_values, **hidden)

    monkeypatch.setattr(cuda_graphs, "attend_shared", watch)
    both(models["chameleon"], torch.float32, count=1, num_samples=2)
    layers = PRESET.num_layers
    assert seen == [6] * 6 * layers + [12] * 6 * layers + [16] * 3 * layers, "15 steps: the last code needs none"


def test_progress_that_is_kept_is_not_written_over(models):
    """The next images are decoded into the same buffers."""
    decoder, kept = Decoder(models["chameleon"], stepping="static"), []
    prefixes = prefixes_of(models["chameleon"], 1)
    first = sample_images(
        models["chameleon"],
        prefixes,
        num_samples=2,
        seed=1,
        decoder=decoder,
        on_progress=kept.append,
    )
    second = sample_images(models["chameleon"], prefixes, num_samples=2, seed=2, decoder=decoder)
    assert not torch.equal(first, second)
    for item in kept:
        assert torch.equal(item.codes, first[:, :, : item.codes.shape[-1]])


@pytest.mark.parametrize(
    ("shape", "dtype", "known"),
    [
        ((32, 32, 128), torch.bfloat16, True),
        ((16, 1, 64), torch.float32, True),
        ((32, 1, 64), torch.float32, False),
        ((8, 8, 80), torch.float32, False),
        ((8, 8, 64), torch.float64, False),
    ],
)
def test_kernels_are_used_for_what_they_know(monkeypatch, shape, dtype, known):
    """A program has 16 queries: with more heads to a group the others would be left out."""
    monkeypatch.setattr(triton_attention, "find_spec", lambda name: True)
    view = SimpleNamespace(**dict(zip(("num_heads", "num_groups", "head_width"), shape, strict=True)))
    decoder = SimpleNamespace(view=view, dtype=dtype, kernels=True, device=torch.device("cuda"))
    assert triton_attention.can_attend(decoder) == known
    decoder.kernels = False
    assert not triton_attention.can_attend(decoder)


def test_progress_and_batches_are_those_of_plain_decoding(models):
    vlm = models["emu3"]
    prefixes, seen = prefixes_of(vlm, 3), {}
    for stepping in ("plain", "static"):
        seen[stepping] = []
        sample_images(
            vlm,
            prefixes,
            num_samples=5,
            batch_size=4,
            progress_tokens=3,
            on_progress=lambda item, stepping=stepping: seen[stepping].append(item),
            decoder=Decoder(vlm, stepping=stepping),
        )
    assert len(seen["plain"]) > 10
    for one, other in zip(seen["plain"], seen["static"], strict=True):
        assert (one.sources, one.candidates) == (other.sources, other.candidates)
        assert torch.equal(one.codes, other.codes)


def test_buffers_serve_again_where_shapes_fit(models):
    """Other prefixes, shorter ones after longer ones too, find nothing of those before."""
    vlm = models["chameleon"]
    vlm.module.float()
    prefixes = prefixes_of(vlm, 4)
    decoder = Decoder(vlm, stepping="static")
    held = set()
    for order in ([2, 1], [0, 3], [1, 0]):
        chosen = [prefixes[row] for row in order]
        expected = sample_images(vlm, chosen, num_samples=2, seed=order, decoder=Decoder(vlm, stepping="plain"))
        assert torch.equal(sample_images(vlm, chosen, num_samples=2, seed=order, decoder=decoder), expected)
        held.add(id(decoder.held))
    assert len(held) == 1
    sample_images(vlm, prefixes[:2], num_samples=3, decoder=decoder)
    assert decoder.held.key[1] == 3, "only the last shape's are kept"


class Watch(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


HOST = {
    "aten::_local_scalar_dense": "the host waits for a number",
    "aten::item": "the host waits for a number",
    "aten::is_nonzero": "the host waits for a number",
    "aten::nonzero": "a shape that only the device knows",
    "aten::masked_select": "a shape that only the device knows",
    "aten::unique_dim": "a shape that only the device knows",
    "aten::lift_fresh": "a tensor from the host's numbers: a copy to the device",
    "aten::_pin_memory": "a copy to the device",
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_step_asks_the_host_nothing(models, sampling):
    for name in ("chameleon", "emu3", "liquid"):
        vlm = models[name]
        if name == "emu3" and sampling == "guided":
            continue
        vlm.module.float()
        decoder, settings = Decoder(vlm, stepping="static"), SAMPLINGS[sampling]
        candidates = Candidates(vlm, decoder, settings, prefixes_of(vlm, 2))
        with torch.no_grad():
            steps = StaticSteps(candidates, 2, Slots(vlm), settings)
            with Watch() as watch:
                steps.step(16)
        assert "aten::mm" in watch.names or "aten::addmm" in watch.names or "mkldnn::_linear_pointwise" in watch.names
        assert not watch.names & set(HOST)


def test_the_watch_sees_what_asks_the_host():
    with Watch() as watch:
        numbers = torch.tensor([1.0, 2.0])
        numbers[numbers > 1].sum().item()
    assert watch.names >= {"aten::lift_fresh", "aten::_local_scalar_dense"}


@pytest.mark.parametrize("family", ["chameleon", "swin", "liquid"])
def test_the_halves_of_a_layer_are_compiled_once_for_all(models, family):
    """Whole (without a break in the graph), and not anew for every layer."""
    graphs_made = []

    def backend(module, inputs):
        graphs_made.append(module)
        return module

    torch._dynamo.reset()
    vlm = models[family]
    vlm.module.double()
    decoder = Decoder(vlm, stepping="static")
    layers, parts = len(decoder.view.layers), compiled_parts(decoder, backend)
    assert layers > 1
    prefixes = prefixes_of(vlm, 2)
    expected = sample_images(vlm, prefixes, num_samples=3, decoder=Decoder(vlm, stepping="plain"))
    sample_images(vlm, prefixes, num_samples=3, decoder=decoder)
    decoder.held._parts = parts
    assert torch.equal(sample_images(vlm, prefixes, num_samples=3, decoder=decoder), expected)
    assert len(graphs_made) == 2


def test_what_cannot_be_recorded_is_called(models, monkeypatch, caplog):
    """From compiled to recorded to plain, each with a warning, and the codes are the same."""
    vlm = models["chameleon"]
    vlm.module.float()
    prefixes = prefixes_of(vlm, 2)
    expected = sample_images(vlm, prefixes, num_samples=2)

    def broken(self):
        raise RuntimeError("operation not permitted\nwhen the stream is capturing")

    monkeypatch.setattr(StaticSteps, "record", broken)
    monkeypatch.setattr(cuda_graphs, "can_attend", lambda decoder: decoder.kernels)
    decoder = Decoder(vlm, stepping="compiled")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample_images(vlm, prefixes, num_samples=2, decoder=decoder), expected)
    # A job that ran before in this process may have asked for more than warnings.
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    kernels = "decoding with Triton kernels"
    assert [text.split(" failed")[0] for text in told] == [f"compiled {kernels}", f"graph {kernels}", "graph decoding"]
    assert [text.split("with ")[-1] for text in told] == ["graph decoding", "graph decoding", "plain decoding"]
    assert "(RuntimeError: operation not permitted when the stream is capturing)" in told[1]
    assert decoder.stepping == "plain" and decoder.held is None


def test_want_of_memory_halves_the_batch_and_keeps_recording(models, monkeypatch, caplog):
    vlm = models["chameleon"]
    prefixes = prefixes_of(vlm, 2)
    expected = sample_images(vlm, prefixes, num_samples=4)

    def record(self):
        if len(self.codes_RL) > 2:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(StaticSteps, "record", record)
    decoder = Decoder(vlm, stepping="graph")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample_images(vlm, prefixes, num_samples=4, decoder=decoder), expected)
    assert "out of memory with 2 at once; continuing with 1" in caplog.text
    assert "failed" not in caplog.text and decoder.stepping == "graph"


def test_decoding_is_plain_without_a_gpu(models):
    assert Decoder(models["chameleon"]).stepping == "plain"


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_gpu
@pytest.mark.parametrize("stepping", ["static", "graph", "compiled"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("family", ["chameleon", "liquid", "emu3"])
def test_recorded_codes_are_those_of_plain_decoding(tmp_path, family, sampling, stepping):
    if family == "emu3" and sampling == "guided":
        pytest.skip("no guidance for this family")
    write = {"liquid": write_liquid, "emu3": write_emu3}.get(family)
    torch.manual_seed(0)
    if write is None:
        vlm = lively(build_nano(TINY_WORDS, PRESET)[0])
        vlm.module.cuda()
        vlm.image_rows, vlm.text_rows = vlm.image_rows.cuda(), vlm.text_rows.cuda()
    else:
        write(tmp_path / family)
        vlm = load_model(tmp_path / family, device="cuda")
    prefixes = prefixes_of(vlm, 3)
    settings = {"num_samples": 4, "sampling": SAMPLINGS[sampling], "seed": [1, 2, 3]}
    expected = sample_images(vlm, prefixes, decoder=Decoder(vlm, stepping="plain"), **settings)
    decoder = Decoder(vlm, stepping=stepping)
    for _ in range(2):
        assert torch.equal(sample_images(vlm, prefixes, decoder=decoder, **settings), expected)
    assert decoder.stepping == stepping, "it fell back"
