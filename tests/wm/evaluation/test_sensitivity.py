"""Action sensitivity: differences by hand, the verdict, prompts without words, and the table."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from tests.helpers.models_reference import lively, reference_logits
from wm.evaluation.probe import COUNTERFACTUAL, Likelihoods, Pairs, ProbeScores, score_probe
from wm.evaluation.report.figures import sensitivity_section
from wm.evaluation.report.findings import Findings
from wm.evaluation.scorers import fdm_scorer
from wm.evaluation.sensitivity import (
    EMPTY,
    OPPOSITE,
    SHUFFLED,
    Gaps,
    empty_prefix,
    list_gaps,
    score_without_action,
    summarise_gaps,
)
from wm.evaluation.sensitivity_table import absence_notes, build_sensitivity, table_cells
from wm.models import load_model
from wm.models.prompts import flatten
from wm.models.vlm import UnifiedVLM


def scores_of(sums: Sequence[float], shuffled: Sequence[float], rows: Sequence[int]) -> ProbeScores:
    """Scores of images of 4 tokens, with shuffled negatives of some rows."""
    reference = Likelihoods(np.array(sums, float), np.full(len(sums), 4.0))
    negative = Likelihoods(np.array(shuffled, float), np.full(len(rows), 4.0))
    return ProbeScores(reference, {"random_action": Pairs(np.array(rows), negative)})


def test_gaps_are_true_minus_other_by_row() -> None:
    scores = scores_of([-4, -8, -12, -6], [-6, -12], [0, 2])
    scores.negatives[COUNTERFACTUAL] = Pairs(np.array([3]), Likelihoods(np.array([-5.0]), np.array([4.0])))
    gaps = list_gaps(scores, np.array([-4.0, -10, -12, -7]))
    assert list(gaps) == [SHUFFLED, OPPOSITE, EMPTY]
    assert gaps[SHUFFLED].sums.tolist() == [2, 0] and gaps[SHUFFLED].rows.tolist() == [0, 2]
    assert gaps[OPPOSITE].sums.tolist() == [-1] and gaps[EMPTY].sums.tolist() == [0, 2, 0, 1]
    summary = summarise_gaps([gaps[EMPTY]])
    # Nats a token; of four rows two are likelier and two tie.
    assert (summary.mean, summary.share, summary.pairs) == (3 / 16, 0.75, 4)
    assert summary.low is not None and summary.high is not None and 0 <= summary.low < 3 / 16 < summary.high <= 0.5
    assert list(list_gaps(scores)) == [SHUFFLED, OPPOSITE]
    single = summarise_gaps([gaps[OPPOSITE]])
    assert (single.low, single.high, single.verdict) == (None, None, "unclear")


def test_the_verdict_goes_by_interval_and_threshold() -> None:
    rng = np.random.default_rng(0)

    def verdict(sums: np.ndarray) -> str:
        return summarise_gaps([Gaps(np.arange(len(sums)), sums, np.full(len(sums), 4.0))]).verdict

    assert verdict(rng.normal(0.0, 1.0, 100)) == "ignores"
    assert verdict(rng.normal(2.0, 1.0, 100)) == "heeds"
    assert verdict(rng.normal(-2.0, 1.0, 100)) == "ignores"
    # All alike, and too small to count: an interval without 0 is not enough.
    assert verdict(np.full(100, 0.002)) == "ignores" and verdict(np.full(100, 0.02)) == "heeds"
    assert verdict(np.full(9, 8.0)) == "unclear"


def test_runs_are_averaged_triplet_by_triplet() -> None:
    first, second = (Gaps(np.array([1, 3]), np.array(sums), np.full(2, 4.0)) for sums in ([4.0, 8.0], [0.0, -4.0]))
    assert summarise_gaps([first, second]).mean == (0.5 + 0.5) / 2
    assert summarise_gaps([first, second]).share == (1 + 1 + 0.5 + 0) / 4
    assert summarise_gaps([first, second], np.array([3, 4])).mean == 0.5


def test_runs_are_compared_by_the_triplets_that_both_have() -> None:
    """An editor withholds another image in each run, and each run's verifier has tokens of its own."""
    first = Gaps(np.array([0, 1, 2]), np.array([4.0, 8.0, 100.0]), np.full(3, 4.0))
    second = Gaps(np.array([0, 1, 3]), np.array([2.0, 6.0, -100.0]), np.full(3, 2.0))
    by_run = {("edit", 0): {SHUFFLED: first}, ("edit", 1): {SHUFFLED: second}}
    (row,) = build_sensitivity({}, ["a", "b", "b", "b"], verifier=by_run)["rows"]
    assert (row["pairs"], row["mean"], row["share"]) == (2, (1 + 2 + 1 + 3) / 4, 1.0)
    assert row["runs"] == {"0": 1.5, "1": 2.0}
    assert {name: (figures["pairs"], figures["mean"]) for name, figures in row["by_subset"].items()} == {
        "a": (1, 1.0),
        "b": (1, 2.5),
    }
    # Without a common one there is no figure.
    other = Gaps(np.array([3]), np.array([1.0]), np.array([2.0]))
    third = Gaps(np.array([2]), np.array([1.0]), np.array([2.0]))
    apart = {("edit", 0): {SHUFFLED: third}, ("edit", 1): {SHUFFLED: other}}
    assert not build_sensitivity({}, [""] * 4, verifier=apart)["rows"]


def test_the_table_has_subsets_reasons_and_names() -> None:
    gaps = {
        ("heeds", 0): {SHUFFLED: Gaps(np.arange(20), np.linspace(4, 8, 20), np.full(20, 4.0))},
        ("blind", 0): {SHUFFLED: Gaps(np.arange(20), np.tile([1.0, -1.0], 10), np.full(20, 4.0))},
    }
    subsets = ["a"] * 10 + ["b"] * 10
    table = build_sensitivity(gaps, subsets, reasons={("editor", "verifier", SHUFFLED): "no inverse model verifies it"})
    heeds, blind = table["rows"]
    assert (heeds["label"], heeds["mean"], heeds["verdict"], heeds["share"]) == ("heeds", 1.5, "heeds", 1.0)
    assert list(heeds["by_subset"]) == ["a", "b"] and heeds["by_subset"]["b"]["pairs"] == 10
    assert heeds["by_subset"]["a"]["mean"] == pytest.approx(np.linspace(4, 8, 20)[:10].mean() / 4)
    assert (blind["mean"], blind["verdict"], blind["share"]) == (0, "ignores", 0.5)
    (sentence,) = table["ignoring"]
    assert sentence.startswith("blind ignores its action: the target is no likelier under the true action than")
    assert sentence.endswith("nats an image token, n = 20)")
    notes = absence_notes(table)
    assert notes[0] == (
        "opposite by likelihood absent of heeds, blind: no triplet has one: make them with wm contradict, give them to "
        "wm evaluate as counterfactuals"
    )
    assert "shuffled by verifier absent of editor: no inverse model verifies it" in notes
    header, cells = table_cells(table)
    assert [row[0] for row in cells] == ["heeds", "  a", "  b", "blind", "  a", "  b"] and len(header) == len(cells[0])


def test_the_report_shows_it_and_labels_stay_texts() -> None:
    gaps = {("<b>x", 0): {SHUFFLED: Gaps(np.arange(20), np.tile([1.0, -1.0], 10), np.full(20, 4.0))}}
    table = build_sensitivity(gaps, [""] * 20)
    html = str(sensitivity_section(cast(Findings, SimpleNamespace(tables={"sensitivity": table}))))
    assert "&lt;b&gt;x ignores its action" in html and "<b>x" not in html
    assert html.count("<tr") == 2 and "+0.0000" in html and "opposite by likelihood absent of" in html
    # An evaluation of an earlier version has none.
    assert not sensitivity_section(cast(Findings, SimpleNamespace(tables={})))


@pytest.fixture
def vlm(tiny_base: Path) -> UnifiedVLM:
    """A model whose probabilities are far from equal."""
    return lively(load_model(tiny_base))


def pairs(vlm: UnifiedVLM, rows: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Random codes, and two actions in turn."""
    rng = torch.Generator().manual_seed(0)
    source, target = (torch.randint(vlm.num_codes, (rows, vlm.tokens_per_image), generator=rng) for _ in range(2))
    return source, target, ["move the red cup" if row % 2 else "put the blue block" for row in range(rows)]


def test_a_prompt_without_words_is_scored_as_it_is_read(vlm: UnifiedVLM) -> None:
    source, target, actions = pairs(vlm, 3)
    scored = score_without_action(vlm, source, actions, target, batch_size=2)
    for row in range(3):
        # By hand: the family's own layout of no words, then the codes of the target.
        source_ids, target_ids = vlm.image_rows[source[row]].tolist(), vlm.image_rows[target[row]].tolist()
        prefix = flatten(vlm.layout_ids("fdm", source=source_ids, action=()))
        logits = reference_logits(vlm, prefix + target_ids)[len(prefix) - 1 : -1][:, vlm.image_rows]
        logprobs = torch.log_softmax(logits, -1)[torch.arange(len(target_ids)), target[row]]
        assert scored[row] == pytest.approx(float(logprobs.sum()), rel=1e-4)


def test_a_prompt_without_words_keeps_the_slot(vlm: UnifiedVLM) -> None:
    source = [0] * vlm.tokens_per_image
    full = flatten(vlm.layout("fdm", source=source, action="move the red cup"))
    bare = empty_prefix(vlm, source, full)
    assert bare == [token for token in full if token in vlm._image_ids]
    vlm.action_slot_tokens = 9
    padded = flatten(vlm.layout("fdm", source=source, action="move the red cup"))
    empty = empty_prefix(vlm, source, padded)
    # As long as any prompt: the target stays where training had it.
    assert len(empty) == len(padded) and empty.count(vlm.pad_id) == 9


def test_a_model_made_to_ignore_its_action_is_named(vlm: UnifiedVLM) -> None:
    """All words and the padding look alike to it, so that no action differs from another."""
    source, target, actions = pairs(vlm, 20)
    subsets, ids = ["s"] * 20, [str(row) for row in range(20)]

    def summary() -> object:
        scores = score_probe(fdm_scorer(vlm), source, target, actions, subsets, ids=ids)
        return summarise_gaps([list_gaps(scores)[SHUFFLED]])

    # Targets that the model itself makes of its actions: it heeds them.
    from wm.dynamics import Sampling, sample_observations

    target = sample_observations(vlm, source, actions, num_candidates=1, sampling=Sampling(greedy=True))[:, 0]
    before = summary()
    assert before.verdict == "heeds" and before.mean > 0.1 and before.low > 0
    vlm.action_slot_tokens = 9
    with torch.no_grad():
        embeddings = vlm.inner.get_input_embeddings().weight
        text = [token for token in range(embeddings.shape[0]) if token not in vlm._image_ids]
        embeddings[text] = 0
    blind = summary()
    assert blind.verdict == "ignores" and abs(blind.mean) < 1e-5 and blind.share == 0.5
    assert blind.pairs == 20
