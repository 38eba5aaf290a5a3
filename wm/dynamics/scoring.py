"""Compute log-probabilities of given completions, for both directions of the dynamics."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.prompts import Segment, flatten
from wm.models.vlm import UnifiedVLM
from wm.sampling.batches import halving, positions_at_once, rows_at_once
from wm.sampling.checks import check_finite
from wm.sampling.model_runner import ModelRunner, PrefixCache
from wm.sampling.runners import build_model_runner

LOGITS_AT_ONCE = 1024
"""Bound on the positions whose logits exist at the same time: 1024 x 65,536 float32 are 268 MB."""


@torch.no_grad()
def completion_logprobs(
    vlm: UnifiedVLM,
    segments_list: Sequence[Sequence[Segment]],
    *,
    rows: Tensor | None = None,
    batch_size: int | None = None,
    runner: ModelRunner | None = None,
) -> list[tuple[float, int]]:
    """Score the completion of each sequence.

    What several sequences share up to their second image (the source of all candidates) is read once. Neither order
    nor batch changes a result (beyond rounding), attention being causal.

    Args:
        vlm: The model.
        segments_list: Prompts with their completions.
        rows: Vocabulary ids to normalise over, which must hold every completion token; all of them without.
        batch_size: Bound on the rows of a pass; what memory holds without it.
        runner: Runs this model as it is now, to be used for many calls; built here without it.

    Returns:
        (sum of the completion's log-probabilities in nats, number of its tokens) of each sequence.

    Raises:
        InputError: For a model that gives non-finite numbers.
    """
    results: list[tuple[float, int]] = [(0.0, 0)] * len(segments_list)
    if not segments_list:
        return results
    # Sequences are cut where others may differ, and grouped by what they share.
    parts = [_split(segments) for segments in segments_list]
    longest = max(len(part.head) + len(part.tail) for part in parts)
    at_once = rows_at_once(longest, batch_size, positions_at_once(vlm))
    runner = runner or build_model_runner(vlm, rows=min(len(parts), at_once) * longest)
    for group in _group_by_head(parts, at_once):

        def score(start: int, stop: int, group: list[list[int]] = group) -> None:
            batch = group[start:stop]
            scores = _score(vlm, runner, [[parts[row] for row in members] for members in batch], rows)
            for row, result in zip((row for members in batch for row in members), scores, strict=True):
                results[row] = result

        halving(score, len(group), max(1, at_once // len(group[0])))
    return results


class _Part(NamedTuple):
    """A sequence as what others may share, and the rest, of whose tokens those at positions ``scored`` are scored."""

    head: tuple[int, ...]
    tail: tuple[int, ...]
    scored: tuple[int, ...]


def _split(segments: Sequence[Segment]) -> _Part:
    """Split a sequence before its second image, or where the completion begins."""
    # The second image is where candidates of one source differ; without one, where the completion begins.
    images = [index for index, segment in enumerate(segments) if segment.is_image]
    first_scored = next((index for index, segment in enumerate(segments) if segment.is_completion), len(segments))
    cut = min(images[1] if len(images) > 1 else first_scored, first_scored)
    flags = [segment.is_completion for segment in segments[cut:] for _ in segment.ids]
    scored = tuple(index for index, is_scored in enumerate(flags) if is_scored)
    return _Part(tuple(flatten(segments[:cut])), tuple(flatten(segments[cut:])), scored)


def _group_by_head(parts: Sequence[_Part], at_once: int) -> Iterator[list[list[int]]]:
    """Group rows by their head: lists of equally many rows each, at most ``at_once``, of about equal length."""
    # 1. Rows by their head, in lists that fit into a pass.
    sharing: dict[tuple[int, ...], list[int]] = {}
    for row, part in enumerate(parts):
        sharing.setdefault(part.head, []).append(row)
    by_count: dict[int, list[list[int]]] = {}
    for rows in sharing.values():
        for start in range(0, len(rows), at_once):
            # The engine reads as many rows of each prefix as of any other.
            chunk = rows[start : start + at_once]
            by_count.setdefault(len(chunk), []).append(chunk)
    # 2. By length, so that little is padded.
    for chunks in by_count.values():
        yield sorted(chunks, key=lambda chunk: len(parts[chunk[0]].head) + max(len(parts[row].tail) for row in chunk))


def _score(
    vlm: UnifiedVLM, runner: ModelRunner, batch: Sequence[Sequence[_Part]], rows: Tensor | None
) -> list[tuple[float, int]]:
    """Score the parts, those of the first head first. All heads have equally many parts."""
    parts = [part for members in batch for part in members]
    # A head that is not shared is read with its tail, which saves a pass.
    if len(batch[0]) == 1:
        ids = [[*part.head, *part.tail] for part in parts]
        hidden_RTH = runner.forward(_pad(ids, vlm.pad_id, runner.device))
        before = [len(part.head) - 1 for part in parts]
    else:
        prefix, last_PH = runner.prefill([members[0].head for members in batch])
        tails_RS = _pad([part.tail for part in parts], vlm.pad_id, runner.device)
        cache = runner.reserve(len(parts), tails_RS.shape[1])
        hidden_RSH = runner.extend(tails_RS, prefix, cache, 0, tails_RS.shape[1])
        last_R1H = last_PH.repeat_interleave(len(batch[0]), dim=0)[:, None]
        hidden_RTH = torch.cat((last_R1H, hidden_RSH), dim=1)
        before = [0] * len(parts)
    return _sum_scores(vlm, runner, hidden_RTH, parts, before=before, rows=rows)


def _sum_scores(
    vlm: UnifiedVLM,
    runner: ModelRunner,
    hidden_RTH: Tensor,
    parts: Sequence[_Part],
    *,
    before: Sequence[int],
    rows: Tensor | None,
) -> list[tuple[float, int]]:
    """Sum the log-probabilities of each part's scored tokens.

    ``before``: of each part the position of the hidden state that predicts its tail's first token.
    """
    row_Q = torch.tensor([row for row, part in enumerate(parts) for _ in part.scored], dtype=torch.int64)
    # The token at position p of a tail is predicted by the one before it.
    position_Q = [start + index for start, part in zip(before, parts, strict=True) for index in part.scored]
    targets_Q = [part.tail[index] for part in parts for index in part.scored]
    hidden_QH = hidden_RTH[row_Q.to(runner.device), torch.tensor(position_Q, dtype=torch.int64, device=runner.device)]
    targets = torch.tensor(targets_Q, dtype=torch.int64, device=runner.device)
    sums_R = torch.zeros(len(parts), dtype=torch.float64)
    sums_R = sums_R.index_add(0, row_Q, token_logprobs(vlm, runner, hidden_QH, targets, rows).cpu())
    # On the sums, once a batch: NaN in any token is NaN in its sum.
    check_finite(sums_R, "log-probabilities", vlm)
    # Sums and counts: whether a score is normalised by its length is the caller's choice.
    return [(total, len(part.scored)) for total, part in zip(sums_R.tolist(), parts, strict=True)]


def score_tails(
    vlm: UnifiedVLM,
    runner: ModelRunner,
    prefix: PrefixCache,
    last_PH: Tensor,
    tails: Sequence[Sequence[Sequence[int]]],
) -> list[list[tuple[float, int]]]:
    """Score what may follow prefixes that are read already.

    Args:
        vlm: The model.
        runner: Has read the prefixes.
        prefix: Their caches.
        last_PH: Hidden states of their last tokens.
        tails: Vocabulary ids of one or more tails of each prefix, each of one token or more.

    Returns:
        (sum of the log-probabilities in nats, number of tokens) of each tail.

    Raises:
        InputError: For a model that gives non-finite numbers.
    """
    # The engine reads as many rows of each prefix as of any other: the last tail stands in for those that lack.
    each = max(map(len, tails))
    parts = [
        _Part((), tuple(ids), tuple(range(len(ids)))) for of in tails for ids in (*of, *[of[-1]] * (each - len(of)))
    ]
    ids_RS = _pad([part.tail for part in parts], vlm.pad_id, runner.device)
    rows = runner.reserve(len(parts), ids_RS.shape[1])
    hidden_RSH = runner.extend(ids_RS, prefix, rows, 0, ids_RS.shape[1])
    last_R1H = last_PH.repeat_interleave(each, dim=0)[:, None]
    hidden_RTH = torch.cat((last_R1H, hidden_RSH), dim=1)
    scores = _sum_scores(vlm, runner, hidden_RTH, parts, before=[0] * len(parts), rows=None)
    return [scores[number * each : number * each + len(of)] for number, of in enumerate(tails)]


def _pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Tensor:
    # On the right: attention is causal, so that padding changes nothing before it.
    longest = max(map(len, rows))
    return torch.tensor([[*ids, *[pad_id] * (longest - len(ids))] for ids in rows], device=device)


def token_logprobs(
    vlm: UnifiedVLM, runner: ModelRunner, hidden_QH: Tensor, targets_Q: Tensor, rows: Tensor | None = None
) -> Tensor:
    """Compute the log-probability of each target vocabulary id, float64 (Q,); the log-softmax is in float32 at
    least.

    Args:
        vlm: The model, whose ``image_rows`` have a head of their own.
        runner: Runs the model.
        hidden_QH: Hidden states of the positions before the targets.
        targets_Q: Vocabulary ids, int64.
        rows: Vocabulary ids to normalise over, which must hold every target; all of them without.
    """
    if rows is not None:
        # Vocabulary ids to their index among the rows; -1, which gather refuses, for all others.
        index_V = torch.full((int(rows.max()) + 1,), -1, dtype=torch.int64, device=rows.device)
        index_V[rows] = torch.arange(len(rows), device=rows.device)
        targets_Q = index_V[targets_Q]
    # In chunks: the logits of all positions at once would be larger than the model.
    logprobs = []
    for hidden, targets in zip(
        torch.split(hidden_QH, LOGITS_AT_ONCE), torch.split(targets_Q, LOGITS_AT_ONCE), strict=True
    ):
        if rows is None:
            logits = runner.logits(hidden)
        else:
            logits = runner.image_logits(hidden) if rows is vlm.image_rows else runner.logits(hidden)[:, rows]
        logprobs.append(
            torch.log_softmax(logits, dim=-1, dtype=runner.exact).gather(1, targets[:, None])[:, 0].double()
        )
    return torch.cat(logprobs) if logprobs else torch.zeros(0, dtype=torch.float64, device=hidden_QH.device)


def code_lists(name: str, codes: Tensor | npt.NDArray[Any] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Convert codes (B, N) to lists; :class:`InputError` for another number of dimensions.

    Args:
        name: Of the codes, for errors.
        codes: Codebook ids (B, N).
    """
    tensor = as_codes(codes, name)
    # One row alone would be taken for so many images of one code.
    if tensor.ndim != 2:
        raise InputError(f"{name}: expected codes (B, N), got shape {tuple(tensor.shape)}")
    rows: list[list[int]] = tensor.to(torch.int64).tolist()
    return rows


def as_codes(codes: Any, name: str) -> Tensor:
    """Convert a tensor, an array, or nested lists (of either) to a tensor; :class:`InputError` for numbers that are not
    integers.

    Args:
        codes: Codebook ids of any shape.
        name: Of the codes, for errors.
    """
    # Arrays of arrays and nested lists go by NumPy, which joins them.
    tensor = codes if isinstance(codes, Tensor) else torch.as_tensor(np.asarray(codes))
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool):
        raise InputError(f"{name}: expected codebook ids, whole numbers, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def check_equal_lengths(**lengths: int) -> None:
    """Raise :class:`InputError` unless all lengths are the same."""
    if len(set(lengths.values())) > 1:
        raise InputError("expected as many of each, got " + ", ".join(f"{n} {name}" for name, n in lengths.items()))
