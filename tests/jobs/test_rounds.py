"""What a further round is made of: the gate between two models, and imagined triplets."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs import gate as gate_job
from jobs.gate import GateRecipe, gain_of
from jobs.imagine import ImagineRecipe
from jobs.imagine import job as imagine_job
from jobs.train.report import evaluation_lines
from tests.helpers.models_reference import lively, reference_logits
from tests.helpers.output_tables import check_stage
from tests.helpers.training_data import random_rows, write_triplets
from wm.datasets.pairing import pair_actions
from wm.dynamics import Sampling, sample_observations, score_actions
from wm.errors import InputError
from wm.evaluation import gates
from wm.evaluation.gates import Gate, GateSet, gate, read_gate_set
from wm.images import decode_image, encode_png
from wm.models import flatten, load_codec, load_model, save_model
from wm.records import REJECT_SCHEMA
from wm.tables import read_table

ACTIONS = ("put the red cup", "move the blue cup", "take the green block", "put the red cup")


@pytest.fixture(scope="module")
def models(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two forward and two inverse models with random weights."""
    folder, found = tmp_path_factory.mktemp("rounds"), {}
    for seed, name in enumerate(("fdm", "fdm2", "idm", "idm2")):
        found[name] = folder / name
        save_model(lively(load_model(tiny_base), seed), found[name], task=name[:3], kind="full")
    return found


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows of two datasets with pictures."""
    rows = random_rows(tiny_base, 8, seed=3)
    codec = load_codec(tiny_base)
    for number, row in enumerate(rows):
        picture = codec.decode(torch.tensor([row["source_codes"]]))[0]
        row |= {"source_image": {"bytes": encode_png(picture), "path": None}, "action": ACTIONS[number % 4]}
        row |= {"dataset": "ab"[number % 2], "class_label": "xy"[number // 4]}
    return write_triplets(rows, tmp_path_factory.mktemp("triplets"))


def plain_nats(vlm: Any, segments: Any) -> float:
    """Mean negative log-likelihood of the completion, by the decoder written out in float64 (images: among codes)."""
    ids = flatten(segments)
    scored = [flag for segment in segments for flag in [segment.is_completion] * len(segment.ids)]
    logits_TV = reference_logits(vlm, ids)
    if any(segment.is_image and segment.is_completion for segment in segments):
        barred = torch.ones(logits_TV.shape[1], dtype=torch.bool)
        barred[vlm.image_rows] = False
        logits_TV = logits_TV.masked_fill(barred, -torch.inf)
    found = [
        -torch.log_softmax(logits_TV[place - 1], -1)[token]
        for place, (token, flag) in enumerate(zip(ids, scored, strict=True))
        if flag
    ]
    return float(torch.stack(found).mean())


def test_the_gate_measures_nats_preference_and_copies(models: dict[str, Path], triplets: Path) -> None:
    for role in ("idm", "fdm"):
        vlm = load_model(models[role])
        held_out = read_gate_set(triplets, vlm)
        found = gate(vlm, role, held_out)
        for row in range(len(held_out)):
            sides = {"source": held_out.source_BN[row].tolist(), "target": held_out.target_BN[row].tolist()}
            segments = vlm.layout(role, **sides, action=held_out.actions[row])
            assert found.nats_B[row] == pytest.approx(plain_nats(vlm, segments), rel=2e-4)
        assert set(found.preference) == {"random_action", "random_observation", "copy", "inverse"}
        assert found.value("preference") == pytest.approx(np.mean([one.share for one in found.preference.values()]))
        assert found.figures()["nats"] == pytest.approx(found.nats_B.mean())
        if role == "idm":
            assert found.copies is found.unchanged_share is None and not found.has_collapsed
            continue
        greedy = Sampling(greedy=True)
        drawn = sample_observations(vlm, held_out.source_BN, held_out.actions, num_candidates=1, sampling=greedy)[:, 0]
        same = [
            [a == b for a, b in zip(x, y, strict=True)]
            for x, y in zip(drawn.tolist(), held_out.source_BN.tolist(), strict=True)
        ]
        assert found.unchanged_share == pytest.approx(np.mean(same))
        assert found.copies == pytest.approx(np.mean([all(row) for row in same]))
        assert found.true_unchanged_share == 0.75  # random_rows changes one token of four


def test_copying_is_told(models: dict[str, Path], triplets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that hands back its sources; rows whose target is the source do not count."""
    vlm = load_model(models["fdm"])
    held_out = read_gate_set(triplets, vlm)
    still = GateSet(held_out.source_BN, held_out.target_BN.clone(), held_out.actions, held_out.subsets, held_out.ids)
    still.target_BN[:6] = still.source_BN[:6]
    kept = torch.cat((still.source_BN[:7], (still.source_BN[7:] + 1) % 16))
    monkeypatch.setattr(gates, "sample_observations", lambda *_, **__: kept[:, None])
    found = gate(vlm, "fdm", still)
    assert (found.copies, found.unchanged_share, found.has_collapsed) == (0.5, 7 / 8, True)
    monkeypatch.setattr(gates, "sample_observations", lambda *_, **__: (still.source_BN[:, None] + 1) % 16)
    assert not gate(vlm, "fdm", still).has_collapsed


def test_copies_are_unknown_where_no_target_differs(models: dict[str, Path], triplets: Path) -> None:
    """A mean over no triplet is not 0."""
    vlm = load_model(models["fdm"])
    held_out = read_gate_set(triplets, vlm)
    still = GateSet(held_out.source_BN, held_out.source_BN, held_out.actions, held_out.subsets, held_out.ids)
    found = gate(vlm, "fdm", still)
    assert found.copies is None and not found.has_collapsed and "copies" not in found.figures()
    line = evaluation_lines({"step": 3, **found.figures(), "has_collapsed": False})[0]
    assert "copies unknown (no held-out target differs from its source), leaves" in line


def test_gain_and_its_error() -> None:
    champion, challenger = (Gate(np.array(values), {}) for values in ([1.0, 2.0, 4.0], [0.5, 2.5, 2.0]))
    gain, error = gain_of(champion, challenger, "nats")
    gains = [0.5, -0.5, 2.0]
    assert gain == pytest.approx(2 / 3) and error == pytest.approx(np.std(gains, ddof=1) / 3**0.5)


def test_the_better_model_goes_on(models: dict[str, Path], triplets: Path, tmp_path: Path) -> None:
    one, two = (
        gate(load_model(models[n]), "idm", read_gate_set(triplets, load_model(models[n]))) for n in ("idm", "idm2")
    )
    better = "idm" if one.value("nats") < two.value("nats") else "idm2"
    worse = "idm2" if better == "idm" else "idm"
    for champion, challenger, chosen in ((worse, better, "challenger"), (better, worse, "champion")):
        out = tmp_path / chosen
        recipe = GateRecipe(
            champion=str(models[champion]), challenger=str(models[challenger]), role="idm",
            triplets=str(triplets), out=str(out),
        )  # fmt: skip
        record = gate_job.run(recipe)
        assert record["summary"]["promoted"] == chosen and (out / "model").resolve() == models[better].resolve()
        assert record["summary"]["gain"] == pytest.approx(
            abs(one.value("nats") - two.value("nats")) * (1 if chosen == "challenger" else -1), rel=1e-5
        )
        assert load_model(out / "model").base_id == load_model(models[better]).base_id
        assert gate_job.run(recipe) == json.loads((out / "run.json").read_text())
    far = recipe.model_copy(
        update={
            "min_gain": 100.0,
            "out": str(tmp_path / "far"),
            "champion": str(models[worse]),
            "challenger": str(models[better]),
        }
    )
    assert gate_job.run(far)["summary"]["promoted"] == "champion"
    wrong = recipe.model_copy(update={"challenger": str(models["fdm"]), "out": str(tmp_path / "wrong")})
    with pytest.raises(InputError, match="was trained as fdm, not as idm"):
        gate_job.run(wrong)
    assert not (tmp_path / "wrong").exists()


def test_codes_of_another_codec_leave_nothing_behind(
    models: dict[str, Path], triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(next(triplets.rglob("*.parquet")))
    foreign = table.set_column(table.schema.names.index("codec"), "codec", pa.array(["f" * 16] * len(table)))
    (tmp_path / "foreign").mkdir()
    pq.write_table(foreign, tmp_path / "foreign" / "p.parquet")
    keys = {"champion": str(models["idm"]), "challenger": str(models["idm2"]), "role": "idm", "metric": "preference"}
    wrong = GateRecipe(**keys, triplets=str(tmp_path / "foreign"), out=str(tmp_path / "out"))
    for is_dry in (True, False):
        with pytest.raises(InputError, match=r"holds codes of codec f{16}, champion = .*wm ingest with codec=MODEL"):
            gate_job.run(wrong, dry_run=is_dry)
    assert not (tmp_path / "out").exists()
    # A subset of several tasks is warned of, where the probe decides.
    right = wrong.model_copy(update={"triplets": str(triplets), "subset": "split"})
    gate_job.run(right, dry_run=True)
    assert "class_label has 2 values: the probe's negatives cross them" in capsys.readouterr().out
    gate_job.run(right.model_copy(update={"subset": "class_label"}), dry_run=True)
    assert "warning" not in capsys.readouterr().out


def test_actions_are_paired_within_subsets_by_the_seeds() -> None:
    said = [("a", "x"), ("a", "x"), ("a", "y"), ("b", "z")]
    found = pair_actions(["a", "b", "c", "a"], said, each=2, seeds=[1, 2, 3, 4])
    assert [sorted(words) for words in found] == [["x", "y"], ["z"], [], ["x", "y"]]
    seeds = [row_seed(1, str(row)) for row in range(3000)]
    paired = pair_actions(["a"] * 3000, said, each=1, seeds=seeds)
    assert pair_actions(["a"] * 9, said, each=1, seeds=seeds[8::-1]) == paired[8::-1]  # no place counts
    counts = [paired.count([word]) for word in ("x", "y")]
    assert counts[0] + counts[1] == 3000 and 1900 < counts[0] < 2100  # as often as it was said


def row_seed(seed: int, *names: str) -> int:
    """The formula of the format's description, written out again."""
    text = f"[{seed}," + ",".join(f'"{name}"' for name in names) + "]"
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) // 2


def recipe(models: dict[str, Path], triplets: Path, out: Path, **more: Any) -> ImagineRecipe:
    plain: dict[str, Any] = {
        "filters": {"min_score": -50.0, "max_unchanged": 1.0},
        "search": {"num_candidates": 3},
        "actions_each": 2,
    }
    plain |= {"sources": str(triplets), "actions": str(triplets), "fdm": str(models["fdm"]), "idm": str(models["idm"])}
    return ImagineRecipe.parse(plain | more | {"out": str(out)}, "test")


def test_imagined_triplets_are_the_verifiers_choice(
    models: dict[str, Path], triplets: Path, tmp_path: Path, tiny_base: Path
) -> None:
    record = imagine_job.run(recipe(models, triplets, tmp_path / "all", subset="class_label"))
    rows = read_table(tmp_path / "all" / "triplets").to_pylist()
    copies = sum(row["source_codes"] == row["target_codes"] for row in rows)
    counts = {"tries": 16, "triplets": 16, "unchanged_codes": copies, "rejects": 0, "by_reason": {}}
    assert record["counts"] == counts and len(rows) == 16
    codec, fdm, idm = load_codec(tiny_base), load_model(models["fdm"]), load_model(models["idm"])
    given = sorted(read_table(triplets).to_pylist(), key=lambda row: row["triplet_id"])
    vectors = codec.vqgan.quantize.embedding.weight.detach()
    for row in rows:
        source = next(one for one in given if one["source_codes"] == row["source_codes"])
        said = {one["action"] for one in given if one["class_label"] == source["class_label"]}
        assert row["action"] in said and row["origin"] == "fdm" and row["source_image"] == source["source_image"]
        seed = row_seed(0, source["triplet_id"])
        seed = row_seed(seed, row["action"])
        drawn = sample_observations(fdm, [row["source_codes"]], [row["action"]], num_candidates=3, seed=seed)[0]
        scores = score_actions(idm, [row["source_codes"]] * 3, drawn, [row["action"]] * 3)
        best = max(range(3), key=lambda k: (scores[k].logprob, -k))
        assert row["target_codes"] == drawn[best].tolist()
        assert row["action_logprob"] == pytest.approx(scores[best].logprob, abs=1e-3)
        assert row["action_tokens"] == scores[best].num_tokens
        np.testing.assert_array_equal(
            decode_image(row["target_image"]["bytes"], ""), codec.decode(drawn[best : best + 1])[0]
        )
        far = [
            ((vectors[a] - vectors[b]) ** 2).sum().item()
            for a, b in zip(row["source_codes"], row["target_codes"], strict=True)
        ]
        assert row["change"] == pytest.approx(far, rel=1e-5)


def test_low_scores_are_rejected_and_a_killed_run_resumes(
    models: dict[str, Path], triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagine_job.run(recipe(models, triplets, tmp_path / "all"))
    everything = read_table(tmp_path / "all" / "triplets").to_pylist()
    scores = sorted(row["action_logprob"] / row["action_tokens"] for row in everything)
    bound = (scores[7] + scores[8]) / 2
    strict = {"filters": {"min_score": bound, "max_unchanged": 0.7}}
    record = imagine_job.run(recipe(models, triplets, tmp_path / "some", **strict))

    def unchanged(row: dict[str, Any]) -> float:
        return float(np.mean(np.array(row["source_codes"]) == np.array(row["target_codes"])))

    expected = {}
    for row in everything:
        likely = row["action_logprob"] / row["action_tokens"] >= bound
        expected[row["triplet_id"]] = "copy" if unchanged(row) > 0.7 else "" if likely else "unlikely"
    kept = read_table(tmp_path / "some" / "triplets").column("triplet_id").to_pylist()
    rejects = read_table(tmp_path / "some" / "rejects", REJECT_SCHEMA).to_pylist()
    found = dict.fromkeys(kept, "") | {row["reject_id"]: row["reason"] for row in rejects}
    assert found == expected and len(kept) + len(rejects) == 16 == record["counts"]["tries"]
    assert {row["outcome"] for row in rejects} == {"filtered"}
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    check_stage(tmp_path / "all", 16, 0)
    check_stage(tmp_path / "some", len(kept), len(rejects))
    imagine_job.run(recipe(models, triplets, tmp_path / "none", filters={"max_unchanged": 0.0, "min_score": 0.0}))
    check_stage(tmp_path / "none", 0, 16)

    monkeypatch.setattr(imagine_job, "SOURCES_PER_PART", 3)
    parts = recipe(models, triplets, tmp_path / "parts", **strict)
    imagine_job.run(parts)
    whole = sorted(
        read_table(tmp_path / "parts" / "triplets").to_pylist(), key=lambda row: kept.index(row["triplet_id"])
    )
    assert [row["target_codes"] for row in whole] == read_table(tmp_path / "some" / "triplets").column(
        "target_codes"
    ).to_pylist()
    out = tmp_path / "parts"
    (out / "run.json").rename(out / "run.unfinished.json")
    (out / "triplets" / "part-00001.parquet").unlink()
    before = (out / "triplets" / "part-00000.parquet").stat().st_mtime_ns
    assert imagine_job.run(parts)["counts"] == record["counts"]
    assert (out / "triplets" / "part-00000.parquet").stat().st_mtime_ns == before


def test_bad_input_is_told_before_any_work(models: dict[str, Path], triplets: Path, tmp_path: Path) -> None:
    for changes, said in (
        ({"subset": "colour"}, "subset = 'colour': triplets have no such column"),
        ({"search": {"num_draft_tokens": 4}}, r"num_draft_tokens = 4: expected 0 \(off\) to 3"),
        ({"sources": str(tmp_path / "gone")}, "gone"),
        ({"idm": str(models["fdm"])}, r"idm = .* was trained as fdm"),
        ({"idm": "nowhere"}, "idm = 'nowhere': no such model folder"),
        ({"resources": {"device": "abacus"}}, "device = 'abacus'"),
        ({"resources": {"base_sharing": "shared"}}, "sharing weights needs both roles over one base"),
    ):
        with pytest.raises(InputError, match=said):
            imagine_job.run(recipe(models, triplets, tmp_path / "out", **changes))
    for name in ("num_return", "num_beams"):
        with pytest.raises(InputError, match=f"search.*{name} = 2 has no part here"):
            ImagineRecipe.parse(recipe(models, triplets, tmp_path / "out").model_dump() | {"search": {name: 2}}, "test")
    assert not (tmp_path / "out").exists()
    assert imagine_job.run(recipe(models, triplets, tmp_path / "out"), dry_run=True) == {}
    assert not (tmp_path / "out").exists()
