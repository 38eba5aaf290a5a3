"""Seeds of rows: what a triplet is given depends on the run's seed and its id alone, and rows are independent."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.predict import triplets
from jobs.predict.sources import TripletSources
from jobs.predict.triplets import predict_triplets
from tests.helpers.code_calls import predict_observations, sample_bank
from tests.helpers.models_reference import lively
from tests.helpers.training_data import random_rows, write_triplets
from wm.dynamics import CodeForward, CodeInverse, Observation, Search, observe_codes
from wm.dynamics.pairs import ModelPair
from wm.dynamics.roles import Role
from wm.evaluation.heldout import HeldOut
from wm.models import load_codec, load_model
from wm.records import derive_seed, row_seeds
from wm.sampling import Sampling, build_model_runner
from wm.sampling.texts import TextBatch, decode_texts
from wm.tables import read_table

ROWS = 9


@pytest.fixture(scope="module")
def role(tiny_base: Path) -> Role:
    model = lively(load_model(tiny_base))
    return Role(model, build_model_runner(model))


@pytest.fixture(scope="module")
def held_out(tiny_base: Path) -> HeldOut:
    rows = random_rows(tiny_base, ROWS, seed=6)
    return held_out_of([row["triplet_id"] for row in rows], rows)


def held_out_of(ids: list[str], rows: list[dict[str, Any]]) -> HeldOut:
    grey = np.full((len(rows), 16, 16, 3), 128, np.uint8)
    source, target = (torch.tensor([row[name] for row in rows]) for name in ("source_codes", "target_codes"))
    actions = [row["action"] for row in rows]
    return HeldOut(ids, actions, ["x"] * len(rows), grey, grey, source, target, np.ones(tuple(source.shape)))


def take(held_out: HeldOut, rows: list[int]) -> HeldOut:
    lists = {name: [getattr(held_out, name)[row] for row in rows] for name in ("ids", "actions", "subsets")}
    arrays = ("source_pixels", "target_pixels", "source_codes", "target_codes", "change")
    return replace(held_out, **lists, **{name: getattr(held_out, name)[rows] for name in arrays})


def test_a_seed_is_the_hash_of_its_parts() -> None:
    """Against the formula written out with ``json`` and ``hashlib``; separators in ids do not mix them up."""
    for parts in ((3, "a"), (3, "a", 1), (0, "é\u0000"), (12, "3"), (1, "23"), (1, "2", "3"), (2**62, "a\x1fb")):
        digest = hashlib.sha256(json.dumps(list(parts), separators=(",", ":")).encode()).digest()
        assert derive_seed(*parts) == int.from_bytes(digest, "big") >> (256 - 63) < 2**63
    seeds = [derive_seed(seed, str(row)) for seed in range(50) for row in range(2000)]
    assert len(set(seeds)) == len(seeds)
    bits = np.unpackbits(np.array(seeds, dtype=">u8").view(np.uint8).reshape(-1, 8), axis=1)[:, 1:]
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4 * 0.5 / np.sqrt(len(seeds))


def test_seeds_of_rows_go_by_ids_and_repeated_ids_differ() -> None:
    ids = ["a", "b", "a", "", "a", None]
    seeds = row_seeds(7, ids)
    assert len(set(seeds)) == 6
    assert seeds[:2] == [derive_seed(7, "a"), derive_seed(7, "b")]
    assert row_seeds(7, ids[::-1])[::-1][1] == seeds[1]
    assert not set(seeds) & set(row_seeds(8, ids))


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(guidance_scale=2.0, top_k=9)])
def test_order_batch_and_subset_change_no_candidate(role, held_out, tiny_base, block, sampling) -> None:
    def candidates(part: HeldOut, batch_size: int) -> dict[str, Any]:
        bank = sample_bank(
            role, role, part, load_codec(tiny_base), None, num_candidates=3, sampling=sampling, seed=4,
            batch_size=batch_size, num_draft_tokens=block,
        )  # fmt: skip
        return {name: codes.tolist() for name, codes in zip(part.ids, bank.codes, strict=True)}

    complete = candidates(held_out, 64)
    assert len({str(codes) for codes in complete.values()}) == ROWS
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    for rows, batch_size in ((order, 64), (order, 1), (order, 4), ([7], 64), ([5, 2, 8], 2)):
        part = candidates(take(held_out, rows), batch_size)
        assert part == {held_out.ids[row]: complete[held_out.ids[row]] for row in rows}


def sources_of(part: HeldOut, role: Role) -> TripletSources:
    """Sources as ``predict`` takes them, of stored codes."""

    def observe(pair: ModelPair, rows: range) -> list[Observation]:
        return observe_codes(part.source_codes[rows.start : rows.stop].tolist(), role.model.codec_id)

    return TripletSources(part.ids, part.actions, observe, lambda row: (part.source_pixels[row],) * 2)


def test_predictions_are_the_same_in_any_parts(role, held_out, tmp_path, monkeypatch) -> None:
    """And each is what the library predicts alone from its source with the seed that the row names."""
    search = Search(num_candidates=4, min_gain_nats=0.6, num_return=4)
    tables = []
    for place, (rows, part) in enumerate((([*range(ROWS)], 64), ([8, 3, 1, 0, 2, 7, 6, 5, 4], 2), ([6, 1], 1))):
        monkeypatch.setattr(triplets, "ROWS_PER_PART", part)
        out = tmp_path / str(place)
        list(predict_triplets(
            ModelPair(CodeForward(role), CodeInverse(role)), sources_of(take(held_out, rows), role), out, search=search,
            sampling=Sampling(), seed=5, batch_size=part,
        ))  # fmt: skip
        found = read_table(out / "predictions", triplets.SCHEMA).to_pylist()
        tables.append({(row["triplet_id"], row["rank"]): (row["codes"], row["seed"], row["draws"]) for row in found})
    assert tables[1] == tables[0] and len(tables[0]) > ROWS
    assert all(tables[0][key] == row for key, row in tables[2].items())
    for row, name in enumerate(held_out.ids):
        codes, seed, draws = tables[0][name, 0]
        source, action = held_out.source_codes[row : row + 1], held_out.actions[row : row + 1]
        (alone,) = predict_observations(role.model, role.model, source, action, search=search, seed=seed)
        assert (list(alone.best.codes), len(alone.candidates)) == (codes, draws)


def test_the_spread_over_seeds_is_that_of_independent_samples(role, tiny_base) -> None:
    """48 triplets of one source and action: of each seed the share with the commonest first code, K = 2.

    The reference is the binomial distribution; with one seed for all rows the spread is 7 times as large.
    """
    rows = random_rows(tiny_base, 1) * 48
    held_out = held_out_of([f"t{row}" for row in range(48)], rows)
    codec, seeds = load_codec(tiny_base), range(80)
    first = np.stack([
        sample_bank(
            role, None, held_out, codec, None, num_candidates=2, sampling=Sampling(), seed=seed, batch_size=96,
        ).codes[:, :, 0]
        for seed in seeds
    ])  # fmt: skip
    hit = first == np.bincount(first.reshape(-1)).argmax()
    chance = hit.mean()
    assert 0.1 < chance < 0.9
    reference = np.sqrt(chance * (1 - chance) / (48 * 2))
    assert hit.mean(axis=(1, 2)).std(ddof=1) == pytest.approx(reference, rel=0.2)
    shared = hit[:, 0].mean(axis=1).std(ddof=1)  # of one row: what every row had when all shared its noise
    assert shared > 4 * reference


def test_two_models_see_the_same_noise(role, held_out, tiny_base) -> None:
    """A model against itself: the difference of each triplet is 0 for every seed, its spread cancelled."""
    values = [
        sample_bank(
            role, None, held_out, load_codec(tiny_base), None, num_candidates=3, sampling=Sampling(), seed=seed,
            batch_size=batch_size,
        ).metrics["unchanged_tokens"]
        for batch_size in (64, 5)
        for seed in (0, 1)
    ]  # fmt: skip
    assert np.array_equal(values[0], values[2]) and np.array_equal(values[1], values[3])
    assert not np.array_equal(values[0], values[1])


def test_texts_of_several_prefixes_have_a_seed_each(role, held_out) -> None:
    model = role.model
    prefix = model.layout("idm", source=held_out.source_codes[0].tolist(), target=held_out.target_codes[0].tolist())
    ids = [token for segment in prefix for token in segment.ids]
    sampled = Sampling(temperature=3.0)

    def texts(prefixes: int, seed: Any) -> list[list[int]]:
        run = TextBatch(
            model, role.runner, [ids] * prefixes, num_candidates=2, sampling=sampled, seed=seed, max_new_tokens=6
        )
        rows: list[list[int]] = [[] for _ in range(prefixes * 2)]
        while not run.is_finished:
            (step,) = decode_texts(role.runner, [run])
            for ids_so_far, token in zip(rows, step, strict=True):
                ids_so_far.extend([token.id] if token is not None else [])
        return rows

    together = texts(3, [5, 6, 5])
    assert together[:2] == together[4:] == texts(1, 5) and together[2:4] == texts(1, 6) != together[:2]


def test_repeated_triplets_are_sampled_apart(role, tiny_base, tmp_path) -> None:
    rows = random_rows(tiny_base, 1) * 12
    folder = write_triplets(rows, tmp_path / "triplets")
    ids = read_table(folder, columns=["triplet_id"])["triplet_id"].to_pylist()
    bank = sample_bank(
        role, None, held_out_of(ids, rows), load_codec(tiny_base), None, num_candidates=1,
        sampling=Sampling(temperature=3.0), seed=0,
    )  # fmt: skip
    assert len(set(ids)) == 1 and len(np.unique(bank.codes[:, 0], axis=0)) > 6
