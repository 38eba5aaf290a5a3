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
from wm.sampling import Sampling, build_model_runner, sample_images
from wm.sampling.guidance import Candidates
from wm.sampling.kernels import cuda_graphs, triton_attention
from wm.sampling.kernels.cuda_graphs import StaticSteps
from wm.sampling.llama_layers import compile_parts
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
    codes = {"chameleon": lively(build_nano(TINY_WORDS, PRESET)[0])}
    swin, _ = build_nano(TINY_WORDS, PRESET)
    swin.module.config.swin_norm = True
    codes["swin"] = lively(swin_of(swin))
    for name, write in {"liquid": write_liquid, "emu3": write_emu3, "janus": write_janus}.items():
        write(folder / name)
        codes[name] = load_model(folder / name)
    return codes


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
        sample_images(vlm, prefixes, runner=build_model_runner(vlm, stepping=stepping), **settings)
        for stepping in ("plain", "static")
    ]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("family", ["chameleon", "swin", "liquid", "emu3", "janus"])
def test_codes_are_those_of_plain_decoding(models, family, sampling, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "BUCKET", 5)
    if family == "emu3" and sampling == "guided":
        pytest.skip("no guidance for this family")
    for dtype in (torch.float64, torch.float32):
        plain, static = both(models[family], dtype, num_candidates=8, sampling=SAMPLINGS[sampling], seed=[4, 5, 6])
        assert torch.equal(static, plain)
    assert sampling == "greedy" or len({tuple(codes) for codes in plain.flatten(0, 1).tolist()}) > 8
    assert build_model_runner(models[family]).view.norm_after == (family == "swin")


@pytest.mark.parametrize("bucket", [1, 4, 15, 16, 128])
@pytest.mark.parametrize("num_candidates", [1, 8])
def test_buckets_change_nothing(models, bucket, num_candidates, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "BUCKET", bucket)
    plain, static = both(models["chameleon"], torch.float32, count=1, num_candidates=num_candidates, seed=2)
    assert torch.equal(static, plain)


def test_step_reads_no_more_than_its_bucket(models, monkeypatch):
    records = []
    monkeypatch.setattr(cuda_graphs, "BUCKET", 6)
    attend = cuda_graphs.attend_shared

    def watch(query, prefix_keys, prefix_values, own_keys, own_values, **hidden):
        records.append(own_keys.shape[2])
        return attend(query, prefix_keys, prefix_values, own_keys, own_values, **hidden)

    monkeypatch.setattr(cuda_graphs, "attend_shared", watch)
    both(models["chameleon"], torch.float32, count=1, num_candidates=2)
    layers = PRESET.num_layers
    # Before: the self-test of positions 0, 1 and 14.
    assert records[: 3 * layers] == [6] * 2 * layers + [16] * layers
    records = records[3 * layers :]
    assert records == [6] * 6 * layers + [12] * 6 * layers + [16] * 3 * layers, "15 steps: the last code needs none"


def test_progress_is_a_copy_of_the_buffers(models):
    """The next images are decoded into the same buffers."""
    runner, updates = build_model_runner(models["chameleon"], stepping="static"), []
    prefixes = prefixes_of(models["chameleon"], 1)
    first = sample_images(
        models["chameleon"],
        prefixes,
        num_candidates=2,
        seed=1,
        runner=runner,
        on_progress=updates.append,
    )
    second = sample_images(models["chameleon"], prefixes, num_candidates=2, seed=2, runner=runner)
    assert not torch.equal(first, second)
    for item in updates:
        assert torch.equal(item.codes, first[:, :, : item.codes.shape[-1]])


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((32, 32, 128), torch.bfloat16, True),
        ((16, 1, 64), torch.float32, True),
        ((32, 1, 64), torch.float32, False),
        ((8, 8, 80), torch.float32, False),
        ((8, 8, 64), torch.float64, False),
    ],
)
def test_kernels_are_used_for_known_shapes_and_types(monkeypatch, shape, dtype, expected):
    """A program has 16 queries: with more heads to a group the others would be left out."""
    monkeypatch.setattr(triton_attention, "find_spec", lambda name: True)
    view = SimpleNamespace(**dict(zip(("num_heads", "num_groups", "head_width"), shape, strict=True)))
    runner = SimpleNamespace(view=view, dtype=dtype, kernels=True, device=torch.device("cuda"))
    assert triton_attention.can_attend(runner) == expected
    runner.kernels = False
    assert not triton_attention.can_attend(runner)
    # Without Triton steps are recorded with torch's products.
    runner.kernels = True
    monkeypatch.setattr(triton_attention, "find_spec", lambda name: None)
    assert not triton_attention.can_attend(runner)


def test_progress_and_batches_are_those_of_plain_decoding(models):
    vlm = models["emu3"]
    prefixes, records = prefixes_of(vlm, 3), {}
    for stepping in ("plain", "static"):
        records[stepping] = []
        sample_images(
            vlm,
            prefixes,
            num_candidates=5,
            batch_size=4,
            progress_tokens=3,
            on_progress=lambda item, stepping=stepping: records[stepping].append(item),
            runner=build_model_runner(vlm, stepping=stepping),
        )
    assert len(records["plain"]) > 10
    for first, other in zip(records["plain"], records["static"], strict=True):
        assert (first.sources, first.candidates) == (other.sources, other.candidates)
        assert torch.equal(first.codes, other.codes)


def test_buffers_serve_again_where_shapes_fit(models):
    """Other prefixes, shorter ones after longer ones too, find nothing of those before."""
    vlm = models["chameleon"]
    vlm.module.float()
    prefixes = prefixes_of(vlm, 4)
    runner = build_model_runner(vlm, stepping="static")
    step_ids = set()
    for order in ([2, 1], [0, 3], [1, 0]):
        batch = [prefixes[row] for row in order]
        expected = sample_images(
            vlm, batch, num_candidates=2, seed=order, runner=build_model_runner(vlm, stepping="plain")
        )
        assert torch.equal(sample_images(vlm, batch, num_candidates=2, seed=order, runner=runner), expected)
        step_ids.add(id(runner.static_steps))
    assert len(step_ids) == 1
    sample_images(vlm, prefixes[:2], num_candidates=3, runner=runner)
    assert runner.static_steps.key[1] == 3, "only the last shape's are kept"


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
def test_step_never_waits_for_the_host(models, sampling):
    for name in ("chameleon", "emu3", "liquid"):
        vlm = models[name]
        if name == "emu3" and sampling == "guided":
            continue
        vlm.module.float()
        runner, settings = build_model_runner(vlm, stepping="static"), SAMPLINGS[sampling]
        candidates = Candidates(vlm, runner, settings, prefixes_of(vlm, 2))
        with torch.no_grad():
            steps = StaticSteps(candidates, 2, Slots(vlm), settings)
            with Watch() as watch:
                steps.step(16)
        assert "aten::mm" in watch.names or "aten::addmm" in watch.names or "mkldnn::_linear_pointwise" in watch.names
        assert not watch.names & set(HOST)


def test_watch_sees_what_waits_for_the_host():
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
    runner = build_model_runner(vlm, stepping="static")
    layers, parts = len(runner.view.layers), compile_parts(runner.layers, backend)
    assert layers > 1
    prefixes = prefixes_of(vlm, 2)
    expected = sample_images(vlm, prefixes, num_candidates=3, runner=build_model_runner(vlm, stepping="plain"))
    sample_images(vlm, prefixes, num_candidates=3, runner=runner)
    runner.static_steps._parts = parts
    assert torch.equal(sample_images(vlm, prefixes, num_candidates=3, runner=runner), expected)
    assert len(graphs_made) == 2


def test_what_cannot_be_recorded_is_called(models, monkeypatch, caplog):
    """From compiled to recorded to plain, each with a warning, and the codes are the same."""
    vlm = models["chameleon"]
    vlm.module.float()
    prefixes = prefixes_of(vlm, 2)
    expected = sample_images(vlm, prefixes, num_candidates=2)

    def broken(self):
        raise RuntimeError("operation not permitted\nwhen the stream is capturing")

    monkeypatch.setattr(StaticSteps, "record", broken)
    monkeypatch.setattr(cuda_graphs, "can_attend", lambda runner: runner.kernels)
    runner = build_model_runner(vlm, stepping="compiled")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample_images(vlm, prefixes, num_candidates=2, runner=runner), expected)
    # A job that ran before in this process may have asked for more than warnings.
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    kernels = "decoding with Triton kernels"
    assert [text.split(" failed")[0] for text in messages] == [
        f"compiled {kernels}",
        f"graph {kernels}",
        "graph decoding",
    ]
    assert [text.split("with ")[-1] for text in messages] == ["graph decoding", "graph decoding", "plain decoding"]
    assert "(RuntimeError: operation not permitted when the stream is capturing)" in messages[1]
    assert runner.stepping == "plain" and runner.static_steps is None


def test_lack_of_memory_halves_batch_and_keeps_recording(models, monkeypatch, caplog):
    vlm = models["chameleon"]
    prefixes = prefixes_of(vlm, 2)
    expected = sample_images(vlm, prefixes, num_candidates=4)

    def record(self):
        if len(self.codes_RL) > 2:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(StaticSteps, "record", record)
    runner = build_model_runner(vlm, stepping="graph")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample_images(vlm, prefixes, num_candidates=4, runner=runner), expected)
    assert "out of memory with 2 at once; continuing with 1" in caplog.text
    assert "failed" not in caplog.text and runner.stepping == "graph"


def test_decoding_is_plain_without_a_gpu(models):
    assert build_model_runner(models["chameleon"]).stepping == "plain"


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
    settings = {"num_candidates": 4, "sampling": SAMPLINGS[sampling], "seed": [1, 2, 3]}
    expected = sample_images(vlm, prefixes, runner=build_model_runner(vlm, stepping="plain"), **settings)
    runner = build_model_runner(vlm, stepping=stepping)
    for _ in range(2):
        assert torch.equal(sample_images(vlm, prefixes, runner=runner, **settings), expected)
    assert runner.stepping == stepping, "it fell back"
