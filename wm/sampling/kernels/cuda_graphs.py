"""Decode by steps of fixed shapes, so that a GPU can replay them without the host.

One step is: sample a code from the logits with the step's noise, embed it, pass all layers over caches of fixed size,
take the logits of the image codes. Nothing in it depends on a number that only the device knows, and the position of
the step is a tensor on the device, so that the host never waits and the same recording serves every step. A step reads
the candidates' caches up to the end of the current bucket of positions, masked beyond the step's own: one recording a
bucket. Where Triton is at hand (:mod:`wm.sampling.kernels.triton_attention`) the position itself ends the reading, and
one recording serves all.

How (``stepping`` of :class:`~wm.sampling.llama_runner.LlamaRunner`): ``static`` calls the step, on any device;
``graph`` records it as a CUDA graph; ``compiled`` has torch.compile fuse what surrounds attention first. What fails is
replaced by the next simpler way: ``compiled``, ``graph``, that without Triton, then ``plain``, which is no step of this
module. So is what gives other logits than plain decoding of the same prompt (:mod:`wm.sampling.kernels.self_test`):
every set of buffers is compared once, before its first image.

Shape suffixes of :mod:`wm.sampling.cache`, and: L slots of an image, V image codes, F positions of a bucket.
"""

import logging
from math import inf
from typing import TypeAlias

import torch
from torch import Tensor

from wm.sampling.cache import Prefix
from wm.sampling.guidance import Candidates
from wm.sampling.kernels.attention import attend_shared
from wm.sampling.kernels.self_test import compare_steps
from wm.sampling.kernels.triton_attention import StepAttention, can_attend
from wm.sampling.llama_layers import Attend, Parts, compile_parts
from wm.sampling.llama_runner import LlamaRunner
from wm.sampling.model_runner import SelfTest, Stepping
from wm.sampling.noise import Sampling, sample_tokens
from wm.sampling.slots import Slots

BUCKET = 128
"""Positions by which the reading of the candidates' caches grows."""
PREFIX_MULTIPLE = 64
"""Prefixes are padded to a multiple of it, so that actions of other lengths find the same recording."""
SIMPLER: dict[Stepping, Stepping] = {"compiled": "graph", "graph": "plain"}
Key: TypeAlias = tuple[int, int, int, int, Sampling]

logger = logging.getLogger(__name__)


class StaticSteps:
    """Buffers for ``each`` candidates of so many prefixes (of all conditions), and the step that works on them.

    ``codes_RL``: what fills the slots. A new image begins with :meth:`begin` and grows by :meth:`advance`.
    """

    def __init__(self, candidates: Candidates, each: int, slots: Slots, sampling: Sampling) -> None:
        self.key = key_of(candidates, each, slots, sampling)
        runner = _fast_runner(candidates)
        self._runner, self._slots, self._sampling = runner, slots, sampling
        self._head, self._conditions = candidates.build_head(), candidates.conditions
        view, device = runner.view, runner.device
        prefixes, _, prefix_capacity, length, _ = self.key
        num_rows = prefixes * each
        num_images = num_rows // self._conditions
        shape = (len(view.layers), prefixes, view.num_groups, prefix_capacity, view.head_width)
        # Every tensor of a step is allocated here, once: a recording refers to memory, not to values.
        self._prefix_keys = torch.zeros(shape, dtype=runner.dtype, device=device)
        self._prefix_values = torch.zeros_like(self._prefix_keys)
        self._rows = runner.reserve(num_rows, length)
        self._lengths_P = torch.ones(prefixes, dtype=torch.int64, device=device)
        self._starts_R = torch.ones(num_rows, dtype=torch.int64, device=device)
        self._each = each
        self._rotation = runner.layers.rotations(slice(0, prefix_capacity + length), prefix_capacity + length)
        self._positions_F = torch.arange(length, device=device)
        self._positions_T = torch.arange(prefix_capacity, device=device)
        self._position_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self._noise_LR = torch.zeros((length, num_images), dtype=torch.float64, device=device)
        self._logits_RV = torch.zeros((num_images, len(runner.image_rows)), dtype=runner.dtype, device=device)
        self.codes_RL = torch.zeros((num_images, length), dtype=torch.int64, device=device)
        self._parts: Parts | None = None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._kernel = StepAttention(num_rows, prefixes, prefix_capacity, length, view) if can_attend(runner) else None

    @property
    def num_bytes(self) -> int:
        """Bytes of the caches."""
        return 2 * self._prefix_keys.numel() * self._prefix_keys.element_size() + self._rows.num_bytes()

    @property
    def logits_RV(self) -> Tensor:  # noqa: N802
        """Logits of the next code, (R, V), conditions mixed."""
        return self._logits_RV

    def seek(self, position: int) -> None:
        """Continue at another position."""
        self._position_1.fill_(position)

    def begin(self, candidates: Candidates, noise_LR: Tensor) -> None:
        """Take over the prefixes of ``candidates`` and the noise (0 at row ends).

        Args:
            candidates: The prefixes, read, of the shapes in ``key``.
            noise_LR: float64 in [0, 1).
        """
        # Copied into the buffers that the recordings read. What is beyond a prefix is masked by its length.
        prefix = _shared_prefix(candidates)
        longest = prefix.keys[0].shape[2]
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            self._prefix_keys[layer, :, :, :longest].copy_(keys)
            self._prefix_values[layer, :, :, :longest].copy_(values)
        self._lengths_P.copy_(torch.tensor(prefix.lengths))
        self._starts_R.copy_(self._lengths_P.repeat_interleave(self._each))
        self._noise_LR.copy_(noise_LR)
        self._logits_RV.copy_(candidates.start_logits(self._each))
        self._position_1.zero_()

    def advance(self, position: int) -> None:
        """Sample the code of ``position``, all before it being there, and compute the logits of the next, if any."""
        # Nothing follows the last code: its pass through the layers is spared.
        if position + 1 == self.codes_RL.shape[1]:
            self._sample()
            return
        bucket = self._bucket(position)
        if bucket in self._graphs:
            self._graphs[bucket].replay()
        else:
            self.step(bucket)  # a stepping that records nothing

    def step(self, filled: int) -> None:
        """Take one step at the position that the device knows, in a bucket that ends at ``filled``."""
        runner, position_1 = self._runner, self._position_1
        ids_R = self._slots.rows[self._sample()].repeat(self._conditions)
        positions_R = self._starts_R + position_1
        rotation = (self._rotation[0][positions_R], self._rotation[1][positions_R])
        hidden_RH = runner.layers.run(ids_R, rotation, self._attend(filled), self._parts)
        self._logits_RV.copy_(self._head(hidden_RH))
        position_1.add_(1)

    def _sample(self) -> Tensor:
        """Sample and store the codes int64 (R,) at the position."""
        position_1 = self._position_1
        noise_R = self._noise_LR.index_select(0, position_1)[0]
        code_R = sample_tokens(self._logits_RV, noise_R, self._sampling)
        code_R = self._slots.settle_at(code_R, position_1.expand(len(code_R)))
        self.codes_RL.index_copy_(1, position_1, code_R[:, None])
        return code_R

    def _attend(self, filled: int) -> Attend:
        rows, position_1 = self._rows, self._position_1
        if self._kernel is not None:
            return self._kernel.of(self._prefix_keys, self._prefix_values, rows, self._lengths_P, position_1)
        # Masks are computed from tensors on the device, so that a replay computes them anew.
        padding_PT = self._positions_T >= self._lengths_P[:, None]
        hidden_11F = (self._positions_F[:filled] > position_1)[None, None]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own_keys, own_values = rows.keys[layer], rows.values[layer]
            own_keys.index_copy_(2, position_1, key[:, :, None])
            own_values.index_copy_(2, position_1, value[:, :, None])
            own = own_keys[:, :, :filled], own_values[:, :, :filled]
            shared = self._prefix_keys[layer], self._prefix_values[layer]
            mixed = attend_shared(query[:, None], *shared, *own, prefix_hidden_PT=padding_PT, own_hidden=hidden_11F)
            return mixed.reshape(len(query), -1)

        return attend

    def _bucket(self, position: int) -> int:
        """Return the end of the bucket that holds a position."""
        length = self.codes_RL.shape[1]
        return length if self._kernel is not None else min(length, (position // BUCKET + 1) * BUCKET)

    def compile(self) -> None:
        """Fuse what surrounds attention; the kernels are made at the first step."""
        self._parts = compile_parts(self._runner.layers)

    def record(self) -> None:
        """Record the step of every bucket as a CUDA graph, each after steps that are not recorded: they make kernels
        and work spaces."""
        stream = torch.cuda.Stream(self._runner.device)  # type: ignore[no-untyped-call]
        pool = torch.cuda.graph_pool_handle()
        for bucket in sorted({self._bucket(position) for position in range(self.codes_RL.shape[1] - 1)}, reverse=True):
            # A side stream, as recordings need; the longest bucket first, whose memory serves all others.
            stream.wait_stream(torch.cuda.current_stream(self._runner.device))
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._position_1.zero_()
                    self.step(bucket)
            torch.cuda.current_stream(self._runner.device).wait_stream(stream)
            # One memory pool for all recordings: they never run at the same time.
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.step(bucket)
            self._graphs[bucket] = graph


def key_of(candidates: Candidates, each: int, slots: Slots, sampling: Sampling) -> Key:
    """Return what must be equal for buffers and recordings to serve again: number of prefixes, candidates of each,
    capacity for a prefix, slots, settings.

    Args:
        candidates: The prefixes, read.
        each: Candidates of each prefix.
        slots: The family's image layout.
        sampling: How a code is sampled.
    """
    prefix = _shared_prefix(candidates)
    capacity = -(-prefix.keys[0].shape[2] // PREFIX_MULTIPLE) * PREFIX_MULTIPLE
    return prefix.count, each, capacity, slots.count, sampling


def build_static_steps(
    candidates: Candidates, noise_LR: Tensor, each: int, sampling: Sampling, slots: Slots
) -> StaticSteps | None:
    """Build steps that are ready to begin, or take those that the runner holds where they fit.

    They leave the runner, so that two threads never share them: put them back when the image is done.

    Args:
        candidates: The prefixes, read.
        noise_LR: float64, 0 at row ends.
        each: Candidates of each prefix.
        sampling: How a code is sampled.
        slots: The family's image layout.

    Returns:
        None where images are decoded plainly.

    Raises:
        torch.OutOfMemoryError: Where memory does not suffice.
    """
    runner = candidates.runner
    steps, runner.static_steps = runner.static_steps, None
    # Without steps to record there is no layout to compare either. Freed before memory for others is reserved.
    if not isinstance(steps, StaticSteps) or steps.key != key_of(candidates, each, slots, sampling):
        steps = None
    while steps is None and runner.stepping != "plain":
        steps = _build_steps(candidates, noise_LR, each, sampling, slots)
    if steps is not None:
        steps.begin(candidates, noise_LR)
    return steps


def _build_steps(
    candidates: Candidates, noise_LR: Tensor, each: int, sampling: Sampling, slots: Slots
) -> StaticSteps | None:
    """Build steps as the runner's stepping says, and compare them with plain decoding; where that fails, choose a
    simpler stepping and return None."""
    runner = _fast_runner(candidates)
    way = f"{runner.stepping} decoding{' with Triton kernels' if can_attend(runner) else ''}"
    try:
        steps = StaticSteps(candidates, each, slots, sampling)
        if runner.stepping == "compiled":
            steps.compile()
        if runner.stepping != "static":
            steps.record()
    except torch.OutOfMemoryError:
        raise  # a simpler stepping needs no less memory; the caller halves its batch
    except Exception as error:
        if runner.stepping not in SIMPLER:
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        runner.self_tests[way] = SelfTest(agrees=False, error=inf, limit=0.0, positions=(), detail=text)
        _choose_simpler(runner, way, text)
        return None
    result = runner.self_tests[way] = compare_steps(steps, candidates, noise_LR, each=each)
    if not result.agrees:
        text = result.detail or f"its logits differ by {result.error:.3g} standard deviations, at most {result.limit:g}"
        del steps
        _choose_simpler(runner, way, text)
        return None
    logger.info(
        "%s decoding of %d rows: %.2f GB of caches", runner.stepping, steps.key[0] * each, steps.num_bytes / 1e9
    )
    return steps


def _choose_simpler(runner: LlamaRunner, way: str, text: str) -> None:
    # The kernels are given up before the recording is: a graph without them is still quicker than no graph.
    if runner.stepping == "graph" and can_attend(runner):
        runner.kernels = False
    else:
        runner.stepping = SIMPLER.get(runner.stepping, "plain")
    logger.warning("%s failed (%s); continuing with %s decoding", way, text, runner.stepping)


def _fast_runner(candidates: Candidates) -> LlamaRunner:
    """Narrow the runner to the one that records steps."""
    if not isinstance(candidates.runner, LlamaRunner):
        raise TypeError(f"{type(candidates.runner).__name__} records no steps")
    return candidates.runner


def _shared_prefix(candidates: Candidates) -> Prefix:
    """Narrow the prefixes to those of :class:`~wm.sampling.llama_runner.LlamaRunner`."""
    if not isinstance(candidates.prefix, Prefix):
        raise TypeError(f"{type(candidates.prefix).__name__} holds no keys and values")
    return candidates.prefix
