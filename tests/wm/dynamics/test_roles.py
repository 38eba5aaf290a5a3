"""Forward and inverse model over one copy of a base, or two: the same answers, and the memory that they should take."""

import json
import logging
import shutil
from itertools import chain
from pathlib import Path

import pytest
import torch

from tests.helpers.code_calls import verify
from tests.helpers.models_reference import lively
from tests.helpers.models_roles import RANK, add_adapter, write_roles
from wm.dynamics import load_role, load_roles, sample_observations, score_actions
from wm.errors import InputError
from wm.models import base_id_of, load_model, save_model
from wm.models.sharing import held_bytes, twin_of
from wm.sampling import build_model_runner
from wm.sampling.llama_runner import LlamaRunner

SOURCE = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
ACTIONS = ["move the red cup up", "put the block to the left"]


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    return write_roles(tiny_base, tmp_path_factory.mktemp("roles"))


def base_bytes(folder, dtype):
    module = load_model(folder, dtype=dtype).module
    return held_bytes(chain(module.parameters(), module.buffers()))


def adapter_numbers():
    """Down and up of the adapter of one role: two layers of width 32 and 48."""
    matrices = [(32, 32)] * 4 + [(32, 48)] * 2 + [(48, 32)]
    return 2 * RANK * sum(inputs for inputs, _ in matrices), 2 * RANK * sum(outputs for _, outputs in matrices)


def answers(roles):
    drawn_BKN = sample_observations(
        roles.fdm.model, SOURCE, ACTIONS, num_candidates=6, seed=[3, 4], runner=roles.fdm.runner
    )
    ranked = verify(roles.idm.model, SOURCE[0], ACTIONS[0], drawn_BKN[0], runner=roles.idm.runner)
    return drawn_BKN, ranked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", ["merged", "shared"])
def test_answers_are_those_of_the_models_loaded_alone(folders, weights, dtype):
    """Merged: to the last bit. Shared: the same codes, and log-probabilities up to rounding."""
    roles = load_roles(folders / "fdm", folders / "idm", base_sharing=weights, dtype=dtype)
    drawn_BKN, ranked = answers(roles)
    fdm, idm = (load_model(folders / task, dtype=dtype) for task in ("fdm", "idm"))
    expected = sample_observations(fdm, SOURCE, ACTIONS, num_candidates=6, seed=[3, 4], runner=build_model_runner(fdm))
    assert torch.equal(drawn_BKN, expected)
    truth = verify(idm, SOURCE[0], ACTIONS[0], expected[0], runner=build_model_runner(idm))
    assert [(item.codes, item.index, item.rank) for item in ranked] == [
        (item.codes, item.index, item.rank) for item in truth
    ]
    scores, exact = ([item.score.logprob for item in candidates] for candidates in (ranked, truth))
    if weights == "merged":
        assert scores == exact
    else:
        assert scores == pytest.approx(exact, abs=1e-10 if dtype is torch.float64 else 2e-4)
    swapped = score_actions(fdm, SOURCE, SOURCE.flip(0), ACTIONS)
    assert swapped[0].logprob != pytest.approx(score_actions(idm, SOURCE, SOURCE.flip(0), ACTIONS)[0].logprob, abs=0.1)


def test_modules_of_both_roles_keep_their_own_adapter(folders):
    """Not the decoders alone: the models' own forward, in any order."""
    roles = load_roles(folders / "fdm", folders / "idm", base_sharing="shared")
    ids = torch.tensor([[0, 21, 4, 5, 6, 7, 20, 24, 25]])
    with torch.no_grad():
        for _ in range(2):
            for task, role in (("idm", roles.idm), ("fdm", roles.fdm)):
                alone = load_model(folders / task)
                assert torch.equal(role.model.body(ids), alone.body(ids)), task


def test_weights_of_the_base_are_there_once(folders):
    """To the byte. In float64 nothing is packed: one base and two adapters, whose ``up`` is there once more with its
    scale multiplied in; or two bases. A runner's own are the scaled norms of two layers' heads, and 8 frequencies."""
    base, (down, up) = base_bytes(folders / "base", torch.float64), adapter_numbers()
    own = 2 * 2 * (2 + 2) * 16 * 8 + 8 * 8
    shared = load_roles(folders / "fdm", folders / "idm", base_sharing="shared", dtype=torch.float64)
    merged = load_roles(folders / "fdm", folders / "idm", base_sharing="merged", dtype=torch.float64)
    assert shared.num_bytes() == base + 2 * (down + 2 * up) * 8 + 2 * own
    assert merged.num_bytes() == 2 * (base + own)


def test_packed_copies_are_there_once(folders):
    """In float32 on a CPU every matrix but the embedding is there twice, once transposed."""
    item = load_role(folders / "base")
    shared = load_roles(folders / "fdm", folders / "idm", base_sharing="shared")
    merged = load_roles(folders / "fdm", folders / "idm", base_sharing="merged")
    alone = held_bytes(item.weights())
    assert alone > 1.5 * base_bytes(folders / "base", torch.float32)
    assert merged.num_bytes() == 2 * alone
    mine, theirs = shared.fdm.runner, shared.idm.runner
    for (name, first), (_, second) in zip(mine.matrices(), theirs.matrices(), strict=True):
        parts = zip(getattr(first, "parts", (first,)), getattr(second, "parts", (second,)), strict=True)
        assert all(a.transposed is b.transposed and a.transposed is not None for a, b in parts), name
    down, up = adapter_numbers()
    # Stacked (q, k, v): down and up once more, and between the blocks of up zeros, twice as many as numbers.
    stacked = 2 * 3 * RANK * (32 + 32 + 2 * 32)
    norms = 2 * 2 * (2 + 2) * 16 * 4
    assert shared.num_bytes() == alone + norms + 2 * (down + 2 * up + stacked) * 4


def test_runner_of_another_base_beside_it_changes_nothing(folders):
    first, other = load_model(folders / "base"), load_model(folders / "full")
    beside = build_model_runner(other, beside=build_model_runner(first))
    ids = torch.tensor([[0, 21, 4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(beside.forward(ids), build_model_runner(other).forward(ids))


def test_the_base_may_play_a_role(folders):
    roles = load_roles(folders / "fdm", folders / "base", base_sharing="shared")
    ids = torch.tensor([[0, 21, 4, 5]])
    with torch.no_grad():
        assert torch.equal(roles.idm.model.body(ids), load_model(folders / "base").body(ids))
        assert not torch.equal(roles.idm.model.body(ids), roles.fdm.model.body(ids))


def test_full_models_share_nothing(folders):
    full, base = base_id_of(folders / "full"), base_id_of(folders / "base")
    message = (
        rf"needs both roles over one base, but fdm .*fdm is an adapter of {base} and idm .*full is a full model: {full}"
    )
    with pytest.raises(InputError, match=message):
        load_roles(folders / "fdm", folders / "full", base_sharing="shared")
    with torch.no_grad():
        ids = torch.tensor([[0, 21, 4, 5]])
        merged = load_roles(folders / "fdm", folders / "full").idm.model
        assert torch.equal(merged.body(ids), load_model(folders / "full").body(ids))
    over = load_model(folders / "base")
    with pytest.raises(InputError, match="is a full model with weights of its own, no adapter of"):
        load_model(folders / "full", over=over)
    with pytest.raises(InputError, match="merging would change the weights that it shares"):
        load_model(folders / "fdm", over=over, merge=True)


def test_adapters_of_two_bases_share_nothing(folders, tmp_path):
    save_model(lively(load_model(folders / "base"), seed=3), tmp_path / "base", kind="base")
    save_model(add_adapter(load_model(tmp_path / "base"), 0), tmp_path / "idm", task="idm")
    first, second = base_id_of(folders / "base"), base_id_of(tmp_path / "base")
    with pytest.raises(InputError, match=rf"fdm .* is an adapter of {first} and idm .* is an adapter of {second}"):
        load_roles(folders / "fdm", tmp_path / "idm", base_sharing="shared")
    with pytest.raises(InputError, match=rf"trained on base {second}, but the base to be shared is {first}"):
        load_model(tmp_path / "idm", over=load_model(folders / "base"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_lora_weights": "pissa"}, "begun with init_lora_weights = 'pissa', which changes the base's weights"),
        ({"bias": "all"}, "has bias = 'all': it brings other biases"),
    ],
)
def test_adapters_that_change_their_base_share_nothing(folders, tmp_path, changes, says):
    changed = Path(shutil.copytree(folders / "idm", tmp_path / "idm"))
    config = json.loads((changed / "adapter_config.json").read_text()) | changes
    (changed / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=says):
        load_roles(folders / "fdm", changed, base_sharing="shared", base=folders / "base")


def test_adapter_with_weights_of_its_base_cannot_share_it(folders, tmp_path):
    """PEFT saves an embedding beside its adapter, and reads it into the base."""
    vlm = add_adapter(load_model(folders / "base"), 1, target_modules=["embed_tokens"])
    save_model(vlm, tmp_path / "idm", task="idm")
    vlm.module.save_pretrained(tmp_path / "idm", save_embedding_layers=True)
    ids = torch.tensor([[0, 21, 4, 5, 6, 7, 20, 24, 25]])
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "idm").body(ids), vlm.body(ids))
    with pytest.raises(InputError, match=r"holds .*embed_tokens.base_layer.weight, other weights for its base's own"):
        load_roles(folders / "fdm", tmp_path / "idm", base_sharing="shared", base=folders / "base")


def test_only_the_bare_base_has_twins(folders):
    with pytest.raises(InputError, match="carries an adapter: only the bare base can be shared"):
        twin_of(load_model(folders / "fdm"))


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"modules_to_save": ["lm_head"], "ensure_weight_tying": False}]
)
def test_what_is_not_low_rank_costs_its_own_matrices_alone(folders, tmp_path, settings):
    targets = r".*\.layers\.0\..*q_proj"
    save_model(
        add_adapter(load_model(folders / "base"), 1, target_modules=targets, **settings), tmp_path / "idm", task="idm"
    )
    roles = load_roles(folders / "fdm", tmp_path / "idm", base_sharing="shared", dtype=torch.float64)
    plain = load_roles(folders / "fdm", folders / "base", base_sharing="shared", dtype=torch.float64)
    own = 32 * 32 if "use_dora" in settings else len(load_model(folders / "base").inner.lm_head.weight) * 32
    grown = roles.num_bytes() - plain.num_bytes()
    assert own * 8 <= grown < own * 8 + 4000
    codes, ranked = answers(roles)
    alone = load_model(tmp_path / "idm", dtype=torch.float64)
    truth = verify(alone, SOURCE[0], ACTIONS[0], codes[0])
    assert [item.score.logprob for item in ranked] == pytest.approx([item.score.logprob for item in truth], abs=1e-9)


def test_batch_over_shared_weights_is_halved(folders, monkeypatch, caplog):
    """The same answers, and not a byte of weights more."""
    roles = load_roles(folders / "fdm", folders / "idm", base_sharing="shared")
    before, (codes, ranked) = roles.num_bytes(), answers(roles)
    reserve, hidden = LlamaRunner.reserve, LlamaRunner.forward
    tries = []

    def small(self, num_rows, capacity):
        tries.append(num_rows)
        if num_rows > 2:
            raise torch.OutOfMemoryError("no room")
        return reserve(self, num_rows, capacity)

    monkeypatch.setattr(LlamaRunner, "reserve", small)
    with caplog.at_level(logging.WARNING):
        fewer = sample_observations(
            roles.fdm.model, SOURCE, ACTIONS, num_candidates=6, seed=[3, 4], runner=roles.fdm.runner
        )
    assert torch.equal(fewer, codes)
    assert "out of memory with 6 at once; continuing with 3" in caplog.text
    assert max(tries) == 12
    monkeypatch.undo()

    def short(self, ids_BT):
        if len(ids_BT) > 1:
            raise torch.OutOfMemoryError("no room")
        return hidden(self, ids_BT)

    monkeypatch.setattr(LlamaRunner, "forward", short)
    scored = score_actions(roles.idm.model, SOURCE, SOURCE.flip(0), ACTIONS, runner=roles.idm.runner)
    monkeypatch.undo()
    truth = score_actions(roles.idm.model, SOURCE, SOURCE.flip(0), ACTIONS, runner=roles.idm.runner)
    assert [item.logprob for item in scored] == pytest.approx([item.logprob for item in truth], abs=1e-5)
    assert answers(roles)[1] == ranked
    assert roles.num_bytes() == before


def test_packed_copies_of_one_role_are_not_in_the_other(folders, tmp_path):
    """A DoRA adapter's merged matrices go with its runner."""
    save_model(add_adapter(load_model(folders / "base"), 1, use_dora=True), tmp_path / "dora", task="idm")
    base = load_role(folders / "base")
    before = len(base.runner._packs._made)
    first = load_role(folders / "fdm", over=base)
    assert len(first.runner._packs._made) == 0
    second = load_role(tmp_path / "dora", over=base)
    assert len(second.runner._packs._made) == 2 * 5
    assert len(base.runner._packs._made) == before
