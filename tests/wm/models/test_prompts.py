"""The layout, token by token; packing; and that padding and company change nothing."""

import pytest
import torch

from tests.helpers.models_reference import lively
from wm.errors import InputError
from wm.models import Segment, flatten, load_model, pack
from wm.models.prompts import SpecialIds, layout

SPECIAL = SpecialIds(bos=0, eos=2, pad=1, boi=8, eoi=9)


def test_inverse_layout():
    segments = layout("idm", special=SPECIAL, source=[20, 21], action=[30, 31], target=[22, 23])
    assert flatten(segments) == [0, 8, 20, 21, 9, 8, 22, 23, 9, 30, 31, 2]
    assert [s.ids for s in segments if s.is_completion] == [(30, 31, 2)]
    assert [s.ids for s in segments if s.is_image] == [(20, 21), (22, 23)]
    prefix = layout("idm", special=SPECIAL, source=[20, 21], action=None, target=[22, 23])
    assert prefix == segments[:-1]


def test_forward_layout_with_and_without_slot():
    segments = layout("fdm", special=SPECIAL, source=[20, 21], action=[30], target=[22, 23])
    assert flatten(segments) == [0, 8, 20, 21, 9, 30, 8, 22, 23]
    assert segments[-1] == Segment((22, 23), True, True)
    slot = {"special": SPECIAL, "source": [20, 21], "action_slot_tokens": 3}
    assert flatten(layout("fdm", action=[30], target=None, **slot)) == [0, 8, 20, 21, 9, 30, 1, 1, 8]
    assert flatten(layout("fdm", action=[30, 31, 32, 33], target=None, **slot)) == [
        *(0, 8, 20, 21, 9, 30, 31, 32, 33, 8)
    ]
    assert flatten(layout("idm", action=[30], target=[22, 23], **slot))[-2:] == [30, 2], "only forward prompts"


def test_what_a_prompt_needs():
    with pytest.raises(InputError, match="needs the target image"):
        layout("idm", special=SPECIAL, source=[1], action=[2], target=None)
    with pytest.raises(InputError, match="needs an action"):
        layout("fdm", special=SPECIAL, source=[1], action=None, target=[2])
    with pytest.raises(InputError, match="unknown task 'xdm'"):
        layout("xdm", special=SPECIAL, source=[1], action=[2], target=[3])


def test_pack_pads_on_the_right():
    rows = [
        [Segment((5, 6), False, True), Segment((7,), True, False)],
        [Segment((5,), False, False), Segment((6, 7, 8), True, True)],
    ]
    ids_BT, is_completion_BT, is_image_BT = pack(rows, pad_id=1)
    assert ids_BT.tolist() == [[5, 6, 7, 1], [5, 6, 7, 8]]
    assert is_completion_BT.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert is_image_BT.tolist() == [[True, True, False, False], [False, True, True, True]]
    with pytest.raises(InputError, match="empty batch"):
        pack([], pad_id=1)


def test_padding_and_batch_order_change_nothing(tiny_base):
    vlm = lively(load_model(tiny_base))
    actions = ["put", "move the red cup to the left of the blue bowl", "take the block up"]
    prompts = [
        vlm.layout("idm", source=[k, 1, 2, 3], target=[3, 2, 1, k], action=action) for k, action in enumerate(actions)
    ]
    with torch.no_grad():
        alone = [vlm.body(pack([prompt], vlm.pad_id)[0])[0] for prompt in prompts]
        for order in ([0, 1, 2], [2, 0, 1]):
            together_BTH = vlm.body(pack([prompts[k] for k in order], vlm.pad_id)[0])
            for row, k in enumerate(order):
                torch.testing.assert_close(together_BTH[row, : len(alone[k])], alone[k], atol=2e-5, rtol=1e-5)
