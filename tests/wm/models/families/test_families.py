"""What holds of every family beyond Chameleon; the families themselves have files of their own."""

import pytest
import torch
from transformers import Emu3ForConditionalGeneration, JanusForConditionalGeneration

from tests.helpers.models_families import ACTION, GRID, write_emu3, write_janus, write_liquid
from wm.errors import InputError
from wm.models import flatten, load_codec, load_model, save_model


@pytest.mark.parametrize(
    ("write", "released"),
    [(write_emu3, Emu3ForConditionalGeneration), (write_janus, JanusForConditionalGeneration)],
    ids=["emu3", "janus"],
)
def test_saved_again_is_the_same_model(tmp_path, write, released):
    theirs = write(tmp_path / "model", seed=4)
    vlm = load_model(tmp_path / "model")
    save_model(vlm, tmp_path / "again", kind="full", task="fdm")
    again = load_model(tmp_path / "again")
    ids_BT = torch.tensor([flatten(vlm.layout("fdm", source=GRID, action=ACTION))])
    with torch.no_grad():
        assert torch.equal(again.head(again.body(ids_BT)), vlm.head(vlm.body(ids_BT)))
    loaded = released.from_pretrained(tmp_path / "again").state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    first, second = load_codec(tmp_path / "model"), load_codec(tmp_path / "again")
    assert (
        (first.codec_id, first.decoder_id) == (second.codec_id, second.decoder_id) == (vlm.codec_id, first.decoder_id)
    )


def test_one_family_does_not_load_anothers_adapter(tmp_path):
    from wm.training.adapters import Lora, prepare

    write_janus(tmp_path / "janus")
    write_liquid(tmp_path / "liquid")
    vlm = load_model(tmp_path / "janus")
    counts = prepare(vlm, Lora(r=2), seed=1)
    assert 0 < counts.trained < counts.total
    save_model(vlm, tmp_path / "adapter", task="fdm")
    assert load_model(tmp_path / "adapter").base_id == vlm.base_id
    with pytest.raises(InputError, match=r"was trained on base janus-\w+, but .* is gemma-"):
        load_model(tmp_path / "adapter", base=tmp_path / "liquid")
