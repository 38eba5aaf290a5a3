"""Imagine triplets for self-training: a forward model predicts what actions would do in source images, an inverse model
verifies each prediction, and those it accepts become triplets of origin ``fdm``, for jobs.select and jobs.train.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator

from jobs.shared.roles import RolesRecipe, need_actions, need_roles, read_roles
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.datasets.card import write_dataset_card
from wm.datasets.changes import count_changes
from wm.datasets.pairs.pairing import pair_actions
from wm.dynamics import Candidate, Roles, Search, check_draft_length, predict_observations
from wm.errors import InputError
from wm.evaluation.heldout import spread_rows
from wm.images import decode_image, encode_png, fit_square
from wm.models import ImageCodec, load_codec
from wm.paths import InputPath, OutputPath
from wm.records import (
    REJECT_SCHEMA,
    SEED_SCHEME,
    STAGE_TABLES,
    TRIPLET_SCHEMA,
    RejectRow,
    TripletRow,
    derive_seed,
    fill_empty_tables,
    read_table,
    reject_row,
    row_seeds,
    stable_id,
    triplet_row,
    write_table,
)
from wm.runs import Run, digest_of, read_run

SOURCES_PER_PART = 64
"""Source images a file: what a kill can cost."""
_SOURCE_COLUMNS = ["triplet_id", "dataset", "class_label", "license", "source_image", "codec", "source_codes"]


class ImagineRecipe(RolesRecipe):
    """Models, source images, actions, and which predictions are accepted."""

    sources: InputPath
    """Folder of triplets whose source images are used."""
    actions: InputPath
    """Folder of triplets whose actions are tried, each only in sources of the same subset."""
    subset: str = ""
    """Column that tells subsets apart, such as class_label; empty: any action in any source."""
    out: OutputPath
    """Folder for out/triplets, out/rejects and out/run.json."""
    limit: int = Field(default=0, ge=0)
    """Use so many sources, spread evenly over the set; 0: all."""
    actions_each: int = Field(default=2, ge=1)
    """Actions tried in each source."""
    search: Search = Search(num_candidates=4)
    """How a prediction is searched for; the best one is taken, so that num_return and num_beams have no part here."""
    min_score: float = Field(default=-0.5, le=0)
    """Least mean log-likelihood of the action under the inverse model, nats a token; below it the row is a reject."""
    max_unchanged: float = Field(default=0.99, ge=0, le=1)
    """Largest share of unchanged image tokens; above it the row is a reject (a copy teaches copying). 1 keeps copies
    too; how many triplets are copies is in the counts as unchanged_codes."""
    dataset: str = "imagined"
    """Name for the dataset column."""
    split: str = "train"
    """Name for the split column."""
    seed: int = Field(default=0, ge=0, lt=2**62)
    """Of the pairing and of the sampling."""

    @field_validator("search")
    @classmethod
    def _one_prediction(cls, search: Search) -> Search:
        for name in ("num_return", "num_beams"):
            if getattr(search, name) > 1:
                raise ValueError(f"{name} = {getattr(search, name)} has no part here: of each try the best is taken")
        return search


@dataclass(frozen=True)
class _Try:
    """An action to try in a source."""

    row: TripletRow
    action: str
    seed: int


def run(recipe: ImagineRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Predict, verify and write; a stopped run resumes with the parts that are not there.

    Args:
        recipe: Models, sources, actions.
        dry_run: Check everything and print what would be tried.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: Models, triplets or actions do not allow it.
    """
    need_roles(recipe)
    names = ("fdm", "idm", "sources", "actions", *(["base"] if recipe.base else []))
    inputs = {name: digest_of(getattr(recipe, name)) for name in names}
    stage = Run(recipe.out, "imagine", recipe, inputs | {"seeds": SEED_SCHEME})
    if stage.is_complete():
        print(f"imagine: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    with stage.timed("read"):
        codec = load_codec(recipe.base or recipe.fdm, recipe.device)
        check_draft_length(recipe.search.num_draft_tokens, codec.tokens_per_image)
        codec.need_decoder()
        tries = _pair_actions(recipe)
    if dry_run:
        print(f"imagine: would try {sum(map(len, tries)):,} actions in {len(tries):,} sources into {recipe.out}")
        return {}
    with stage.timed("load"):
        roles = read_roles(recipe, codec)
    need_actions(roles, [0] * codec.tokens_per_image, (attempt.action for attempts in tries for attempt in attempts))
    stage.start()
    with stage.timed("imagine"), torch.inference_mode(), progress_bar(len(tries), "source", "imagine") as bar:
        for num_sources in _write_parts(recipe, tries, codec, roles):
            bar.update(num_sources)
    counts = _counts(stage.out, sum(map(len, tries)))
    fill_empty_tables(recipe.out, STAGE_TABLES, "part-00000.parquet")  # before the card, which names every table
    title = f"{recipe.dataset}: triplets imagined by a forward and verified by an inverse model"
    write_dataset_card(recipe.out, title=title, license="", split=recipe.split)
    record = stage.finish(counts)
    print(
        f"imagine: {counts['tries']:,} tries → {counts['triplets']:,} triplets in {recipe.out}/triplets, "
        f"{counts['rejects']:,} rejects ({', '.join(f'{name} {n}' for name, n in counts['by_reason'].items()) or '-'})"
    )
    if counts["unchanged_codes"]:
        print(f"  {counts['unchanged_codes']:,} triplets have the image codes of their source (max_unchanged = 1)")
    return record


def _pair_actions(recipe: ImagineRecipe) -> list[list[_Try]]:
    """Pair each source, in the order of the triplets' ids, with the actions to try in it."""
    table = read_table(_triplets(recipe.sources), columns=[*_SOURCE_COLUMNS, *_subset(recipe, _SOURCE_COLUMNS)])
    table = table.sort_by("triplet_id")
    if not table.num_rows:
        raise InputError(f"no triplet in {recipe.sources}")
    actions_table = read_table(_triplets(recipe.actions), columns=["triplet_id", "action", *_subset(recipe, [])])
    actions_table = actions_table.sort_by("triplet_id")
    # Spread over the set, so that a limit does not take one class alone.
    rows = table.take(spread_rows(table.num_rows, recipe.limit or None)).to_pylist()

    def subset(row: dict[str, Any]) -> str:
        return str(row[recipe.subset] or "") if recipe.subset else ""

    actions = [(subset(row), row["action"]) for row in actions_table.to_pylist()]
    seeds = row_seeds(recipe.seed, (row["triplet_id"] for row in rows))
    paired = pair_actions([subset(row) for row in rows], actions, each=recipe.actions_each, seeds=seeds)
    if not any(paired):
        raise InputError(f"no action of {recipe.actions} is of the {recipe.subset} of any source in {recipe.sources}")
    # Every try has noise of its own, from the source's id and the action: neither the parts nor `limit` change it.
    return [
        [_Try(row, action, derive_seed(seed, action)) for action in row_actions]
        for row, seed, row_actions in zip(rows, seeds, paired, strict=True)
    ]


def _subset(recipe: ImagineRecipe, have: list[str]) -> list[str]:
    if recipe.subset and recipe.subset not in TRIPLET_SCHEMA.names:
        raise InputError(f"subset = {recipe.subset!r}: triplets have no such column")
    return [recipe.subset] if recipe.subset and recipe.subset not in have else []


def _triplets(folder: str) -> Path:
    inner = Path(folder) / "triplets"
    return inner if inner.is_dir() else Path(folder)


def _write_parts(recipe: ImagineRecipe, tries: list[list[_Try]], codec: ImageCodec, roles: Roles) -> Iterator[int]:
    """Write the parts that are not there, and yield each part's number of sources."""
    out = Path(recipe.out)
    for start in range(0, len(tries), SOURCES_PER_PART):
        sources = tries[start : start + SOURCES_PER_PART]
        name = f"part-{start // SOURCES_PER_PART:05d}.parquet"
        if not (out / "triplets" / name).exists():
            attempts = [attempt for actions in sources for attempt in actions]
            codes = _load_or_encode(codec, attempts)
            predictions = predict_observations(
                roles.fdm.model, roles.idm.model, codes, [attempt.action for attempt in attempts],
                search=recipe.search, sampling=recipe.sampling, seed=[attempt.seed for attempt in attempts],
                batch_size=recipe.batch_size, fdm_decoder=roles.fdm.decoder, idm_decoder=roles.idm.decoder,
            ) if attempts else []  # fmt: skip
            rows = [
                (attempt, source, prediction.best)
                for attempt, source, prediction in zip(attempts, codes.tolist(), predictions, strict=True)
            ]
            rejects = [_build_reject(recipe, attempt, best) for attempt, _, best in rows if _reason(recipe, best)]
            accepted = [row for row in rows if not _reason(recipe, row[2])]
            # Rejects first: a part whose file of triplets is there is complete.
            if rejects:
                write_table(rejects, out / "rejects" / name, REJECT_SCHEMA)
            write_table(_build_triplets(recipe, codec, accepted), out / "triplets" / name, TRIPLET_SCHEMA)
        yield len(sources)


def _load_or_encode(codec: ImageCodec, attempts: list[_Try]) -> torch.Tensor:
    """Return the source codes (M, N): the stored ones where they are of this codec, else those of the image."""
    codes = []
    for attempt in attempts:
        if attempt.row["codec"] == codec.codec_id and attempt.row["source_codes"]:
            codes.append(torch.tensor(attempt.row["source_codes"]))
            continue
        pixels = decode_image(
            attempt.row["source_image"]["bytes"], f"source_image of triplet {attempt.row['triplet_id']}"
        )
        codes.append(codec.encode(fit_square(pixels, codec.side_px)[None])[0].cpu().long())
    return torch.stack(codes) if codes else torch.zeros((0, codec.tokens_per_image), dtype=torch.int64)


def _reason(recipe: ImagineRecipe, best: Candidate) -> str:
    if best.unchanged_share > recipe.max_unchanged:
        return "copy"
    return "unlikely" if best.score.mean_logprob < recipe.min_score else ""


def _identity(recipe: ImagineRecipe, attempt: _Try) -> str:
    return stable_id(recipe.dataset, recipe.split, attempt.row["triplet_id"], attempt.action, str(attempt.seed))


def _build_reject(recipe: ImagineRecipe, attempt: _Try, best: Candidate) -> RejectRow:
    row = reject_row(
        uri=f"{attempt.row['triplet_id']}: {attempt.action}",
        stage="imagine",
        outcome="filtered",
        reason=_reason(recipe, best),
        detail=f"{best.score.mean_logprob:.3f} nats/token, {best.unchanged_share:.3f} of the tokens unchanged",
        dataset=recipe.dataset,
        split=recipe.split,
        class_label=attempt.row["class_label"],
    )
    return row | {"reject_id": _identity(recipe, attempt)}


def _build_triplets(
    recipe: ImagineRecipe, codec: ImageCodec, accepted: list[tuple[_Try, list[int], Candidate]]
) -> list[TripletRow]:
    if not accepted:
        return []
    target_BN = torch.tensor([best.codes for _, _, best in accepted])
    # The stored image is what the codes decode to: there is no other.
    pixels_BHWC = codec.decode(target_BN)
    change_BN = _change(codec, torch.tensor([source for _, source, _ in accepted]), target_BN)
    return [
        triplet_row(
            triplet_id=_identity(recipe, attempt),
            dataset=recipe.dataset,
            split=recipe.split,
            class_label=attempt.row["class_label"],
            source_image=attempt.row["source_image"],
            target_image={"bytes": encode_png(pixels), "path": None},
            codec=codec.codec_id,
            source_codes=source,
            target_codes=list(best.codes),
            change=change,
            action=attempt.action,
            action_logprob=best.score.logprob,
            action_tokens=best.score.num_tokens,
            origin="fdm",
            license=attempt.row["license"],
        )
        for (attempt, source, best), pixels, change in zip(accepted, pixels_BHWC, change_BN.tolist(), strict=True)
    ]


def _change(codec: ImageCodec, source_BN: torch.Tensor, target_BN: torch.Tensor) -> torch.Tensor:
    """Compute the squared L2 distance of the codes' vectors (B, N)."""
    # A predicted image has no features before quantisation, and those of its decoded image would differ from the codes
    # that were predicted.
    vectors_VD = codec.vqgan.quantize.embedding.weight.detach().float().cpu()
    distance_BN: torch.Tensor = (vectors_VD[source_BN] - vectors_VD[target_BN]).square().sum(-1)
    return distance_BN


def _counts(out: Path, tries: int) -> dict[str, Any]:
    changes = count_changes(out / "triplets")
    by_reason: dict[str, int] = {}
    if (out / "rejects").is_dir():
        for reason in read_table(out / "rejects", REJECT_SCHEMA, ["reason"]).column("reason").to_pylist():
            by_reason[reason] = by_reason.get(reason, 0) + 1
    rejects = sum(by_reason.values())
    triplets = changes.rows
    # Rows in = rows out + rejects, always.
    if triplets + rejects != tries:
        raise InputError(f"{out}: {triplets} triplets and {rejects} rejects do not add up to {tries} tries")
    return {
        "tries": tries,
        "triplets": triplets,
        "unchanged_codes": changes.unchanged,
        "rejects": rejects,
        "by_reason": dict(sorted(by_reason.items())),
    }


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(ImagineRecipe, run, name="imagine", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
