"""The runner over transformers' own forward against the fast one, on every shipped family."""

import pytest
import torch

from tests.helpers.models_families import ACTION, write_emu3, write_janus
from tests.helpers.models_families import write_liquid as write_liquid_folder
from tests.helpers.models_reference import lively
from tests.helpers.sampling_decoders import SETTINGS, prefixes_of, source_of
from wm.dynamics import propose_actions, score_actions, score_observations
from wm.models import load_model
from wm.sampling import sample_images
from wm.sampling.llama_runner import LlamaRunner
from wm.sampling.transformers_runner import TransformersRunner

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word", "ignore:`is_gradient_checkpointing`")
FAMILIES = ["chameleon", "liquid", "emu3", "janus"]
WRITERS = {"liquid": write_liquid_folder, "emu3": write_emu3, "janus": write_janus}


@pytest.fixture(scope="module")
def models(tiny_base, tmp_path_factory):
    """The shipped families, in float64: rounding decides nothing."""
    folders = {"chameleon": tiny_base}
    for name, write in WRITERS.items():
        folders[name] = tmp_path_factory.mktemp(name) / "model"
        write(folders[name])
    return {name: lively(load_model(folder, dtype=torch.float64)) for name, folder in folders.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_images_equal_those_of_fast_runner(models, family, sampling):
    vlm = models[family]
    if sampling.is_guided and family == "emu3":
        pytest.skip("guidance is not supported for emu3")
    fast, slow = LlamaRunner(vlm), TransformersRunner(vlm)
    settings = {"num_candidates": 3, "sampling": sampling, "seed": [3, 4, 5, 6], "first_candidate": 2}
    expected = sample_images(vlm, prefixes_of(vlm), runner=fast, **settings)
    assert torch.equal(sample_images(vlm, prefixes_of(vlm), runner=slow, **settings), expected)
    assert torch.equal(sample_images(vlm, prefixes_of(vlm), runner=slow, batch_size=2, **settings), expected)
    assert len(expected.flatten(0, 1).unique(dim=0)) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_those_of_fast_runner(models, family):
    """Within the angles, which transformers computes in float32 whatever the model's type is."""
    vlm = models[family]
    fast, slow = LlamaRunner(vlm), TransformersRunner(vlm)
    sources = [source_of(vlm, row) for row in (1, 1, 1, 2)]
    targets, actions = [source_of(vlm, row) for row in (2, 3, 4, 5)], ["put", ACTION, "take", "put"]
    scores = [score_observations(vlm, sources, actions, targets, runner=runner) for runner in (fast, slow)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    if family != "janus":
        scores = [
            [score.logprob for score in score_actions(vlm, sources, targets, actions, runner=runner)]
            for runner in (fast, slow)
        ]
        assert scores[1] == pytest.approx(scores[0], abs=1e-4)


@pytest.mark.parametrize("family", ["chameleon", "liquid", "emu3"])
def test_texts_equal_those_of_fast_runner(models, family):
    vlm = models[family]
    sources, targets = [source_of(vlm, row) for row in range(3)], [source_of(vlm, row + 5) for row in range(3)]
    proposals = [
        propose_actions(vlm, sources, targets, max_new_tokens=5, runner=runner)
        for runner in (LlamaRunner(vlm), TransformersRunner(vlm))
    ]
    assert [action.text for action in proposals[1]] == [action.text for action in proposals[0]]
    expected = [action.logprob for action in proposals[0]]
    assert [action.logprob for action in proposals[1]] == pytest.approx(expected, abs=1e-4)
