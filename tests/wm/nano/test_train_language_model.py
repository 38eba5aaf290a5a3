"""Pre-training from nothing: the loss is the plain one over what is no pad, falls, and repeats for a seed."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.models_reference import lively, reference_logits
from wm.models import UnifiedVLM, pack
from wm.nano.preset import TINY, TINY_WORDS, build_nano
from wm.nano.train_language_model import PretrainSettings, _loss, _schedule, pretrain


def model(action_slot_tokens: int = 6) -> UnifiedVLM:
    torch.manual_seed(0)
    return build_nano(TINY_WORDS, replace(TINY, action_slot_tokens=action_slot_tokens))[0]


def documents(vlm: UnifiedVLM, count: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    segments = []
    for number in range(count):
        first, second = torch.randint(0, 16, (2, 4), generator=generator).tolist()
        words = " ".join(["red cup left", "blue bowl", "green block up down"][number % 3].split())
        order = "fdm" if number % 2 else "idm"
        segments.append(vlm.layout(order, source=first, action=words, target=second))
    return pack(segments, vlm.pad_id)[0]


@torch.no_grad()
def test_pads_do_not_count() -> None:
    vlm = lively(model())
    ids_MT = documents(vlm, 6)
    inside = (ids_MT == vlm.pad_id) & (torch.arange(ids_MT.shape[1]) < ids_MT.shape[1] - 5)
    assert inside.any() and (ids_MT[:, -1] == vlm.pad_id).any()  # in action slots, and at the end of short documents
    losses = []
    for ids in ids_MT.tolist():
        logits_TV = reference_logits(vlm, ids)
        for position, token in enumerate(ids[1:]):
            if token != vlm.pad_id:
                losses.append(float(logits_TV[position].logsumexp(0) - logits_TV[position, token]))
    assert float(_loss(vlm, ids_MT)) == pytest.approx(sum(losses) / len(losses), rel=0.02)  # bfloat16 against float64
    longer = F.pad(ids_MT, (0, 7), value=vlm.pad_id)
    assert float(_loss(vlm, longer)) == pytest.approx(float(_loss(vlm, ids_MT)), rel=1e-3)


def test_the_loss_falls_and_the_seed_decides() -> None:
    curves = []
    for seed in (0, 0, 1):
        vlm, told = model(), []
        ids_MT = documents(vlm)
        settings = PretrainSettings(steps=60, batch=8, warmup_steps=5, seed=seed)
        before = {name: value.clone() for name, value in vlm.module.named_parameters()}
        figures = pretrain(vlm, ids_MT, settings, lambda *call, told=told: told.append(call))
        assert [step for step, _ in told] == list(range(1, 61))
        assert figures["loss"] == told[-1][1] and figures["seconds"] > 0 and not vlm.module.training
        assert all(not torch.equal(before[name], value) for name, value in vlm.module.named_parameters())
        curves.append([loss for _, loss in told])
    assert curves[0] == curves[1] != curves[2]
    assert curves[0][-1] < 0.75 * curves[0][0]


def test_warm_up_then_flat_then_down_to_nothing() -> None:
    settings = PretrainSettings(steps=100, warmup_steps=10)
    rates = [_schedule(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:60] == [1.0] * 50 and rates[60] == 1.0
    assert rates[60:] == pytest.approx([(100 - step) / 40 for step in range(60, 100)])
    short = [_schedule(step, PretrainSettings(steps=3, warmup_steps=50)) for step in range(3)]
    assert all(0 < rate <= 1 for rate in short)
