"""Score actions between images by a pixel-reading model: what rows share is read once.

The candidates of one source share everything up to the second image; the actions of one pair everything up to the
answer.
"""

from collections.abc import Iterator, Sequence

import torch

from wm.dynamics.idm import ScoredAction
from wm.dynamics.observation import Observation
from wm.dynamics.vlm_pairs import Chat, PairReader
from wm.models.pixels.chats import complete_chat, count_tokens
from wm.sampling.batches import POSITIONS_AT_ONCE, halving, rows_at_once


@torch.no_grad()
def score_pairs(
    reader: PairReader,
    sources: Sequence[Observation],
    targets: Sequence[Observation],
    actions: Sequence[str],
    *,
    batch_size: int | None = None,
    is_shared: bool = True,
) -> list[ScoredAction]:
    """Score each action and the end token after both images and the prompt.

    Neither order nor batch changes a score, up to rounding.

    Args:
        reader: Reads chats about two images.
        sources: Images before.
        targets: Images after, as many.
        actions: As many.
        batch_size: Bound on the rows of a pass; what memory holds without it.
        is_shared: Read what rows share once.

    Raises:
        InputError: An action is empty or holds a special token.
    """
    tokenizer = reader.processor.tokenizer
    # Before the first pass: the last action may be the wrong one.
    counts = {action: count_tokens(tokenizer, reader.prefix, action, "action") for action in dict.fromkeys(actions)}
    # Rows that say the same are scored once: candidates of a sure model are often equal.
    first_rows: dict[tuple[Observation, Observation, str], int] = {}
    same_rows = [first_rows.setdefault(key, row) for row, key in enumerate(zip(sources, targets, actions, strict=True))]
    scores: dict[int, ScoredAction] = {}

    def write(rows: Sequence[int]) -> list[Chat]:
        images = reader.store.read([*(sources[row] for row in rows), *(targets[row] for row in rows)])
        answers = [complete_chat(tokenizer, "", actions[row]) for row in rows]
        pairs = list(zip(images[: len(rows)], images[len(rows) :], strict=True))
        return reader.write(pairs, answers, [counts[actions[row]] for row in rows])

    def keep(rows: Sequence[int], sums: Sequence[float]) -> None:
        for row, logprob in zip(rows, sums, strict=True):
            scores[row] = ScoredAction(actions[row], logprob, counts[actions[row]])

    alone: list[int] = []
    unique = list(first_rows.values())
    for group in _group(sources, targets, unique) if is_shared else [[row] for row in unique]:
        if len(group) == 1:
            alone += group
        else:
            chats = write(group)
            keep(group, _score_group(reader, chats, batch_size))
    # Rows that share nothing, in batches: their images are read when their turn comes.
    if alone:
        longest = len(write(alone[:1])[0].ids)

        def score(start: int, stop: int) -> None:
            keep(alone[start:stop], reader.score(write(alone[start:stop])))

        halving(score, len(alone), rows_at_once(longest, batch_size))
    return [scores[row] for row in same_rows]


def _group(sources: Sequence[Observation], targets: Sequence[Observation], rows: Sequence[int]) -> Iterator[list[int]]:
    """Group rows by what they share: both images, or the source alone, whichever reads fewer tokens."""
    by_source: dict[Observation, dict[Observation, list[int]]] = {}
    for row in rows:
        by_source.setdefault(sources[row], {}).setdefault(targets[row], []).append(row)
    for by_target in by_source.values():
        members = [row for of in by_target.values() for row in of]
        # Answers are short: by pair each pair's images are read, by source the source's and the second of every row.
        if 2 * len(by_target) <= len(members):
            yield from by_target.values()
        else:
            yield members


def _score_group(reader: PairReader, chats: Sequence[Chat], batch_size: int | None) -> list[float]:
    """Score chats of one source: what they share is read once."""
    shared = reader.find_shared(chats)
    cache = reader.read_shared(chats[0], shared)
    sums: list[float] = []

    def score(start: int, stop: int) -> None:
        sums.extend(reader.score(chats[start:stop], shared, cache))

    # Every row has a copy of the cache beside its own tokens.
    halving(score, len(chats), rows_at_once(max(len(chat.ids) for chat in chats), batch_size, POSITIONS_AT_ONCE))
    return sums
