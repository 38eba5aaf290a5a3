"""Lay out many rows of one prompt at once, without a Python list per token.

What :meth:`~wm.models.UnifiedVLM.layout` makes of a row depends, but for the values, on the length of its
action alone. So each length is laid out once, with placeholders for what differs between rows; rows of that length are
then copied from it and their values filled in. No rule of any layout is repeated here.

Shape suffixes: B rows, T tokens, N image tokens, A tokens of all actions one after another.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wm.models.prompts import Task
from wm.models.vlm import UnifiedVLM

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Template:
    """The layout of every row whose action has one length."""

    ids_T: Ids  # noqa: N815
    """Vocabulary ids; placeholders below 0 where rows differ."""
    is_completion_T: npt.NDArray[np.bool_]  # noqa: N815
    source_at_N: npt.NDArray[np.intp]  # noqa: N815
    """Positions of the source's codes, in their order."""
    target_at_N: npt.NDArray[np.intp]  # noqa: N815
    action_at: npt.NDArray[np.intp]
    """Positions of the action's tokens."""
    weighted_at: npt.NDArray[np.intp]
    """Positions of learned image tokens, in order: N of them, or none."""

    @property
    def num_completion_tokens(self) -> int:
        """Return the number of tokens that are learned."""
        return int(self.is_completion_T.sum())


class RowLayout:
    """Lays out rows for one model and task."""

    def __init__(self, vlm: UnifiedVLM, task: Task) -> None:
        """Prepare the layouts; :class:`wm.errors.InputError` if the model's family does not know the task."""
        self._vlm, self._task = vlm, task
        self._templates: dict[int, Template] = {}
        image = [0] * vlm.tokens_per_image
        if task == "idm":
            # Fails here, before any row is read, for a family without inverse models.
            vlm.layout(task, source=image, target=image)
        self._row_of_code = np.asarray(vlm.image_rows.cpu().numpy(), np.int64)

    def template(self, action_tokens: int) -> Template:
        """Return the layout for actions of so many tokens."""
        if action_tokens not in self._templates:
            self._templates[action_tokens] = self._lay_out(action_tokens)
        return self._templates[action_tokens]

    def length(self, action_tokens: int) -> int:
        """Return the number of tokens of a row."""
        return len(self.template(action_tokens).ids_T)

    def fill(
        self, source_BN: Ids, target_BN: Ids, action_A: Ids, action_tokens_B: Ids
    ) -> tuple[Ids, npt.NDArray[np.bool_], list[tuple[npt.NDArray[np.intp], Template]]]:
        """Lay out rows.

        Args:
            source_BN: Codes.
            target_BN: Codes.
            action_A: Vocabulary ids of the actions one after another.
            action_tokens_B: Tokens of each action.

        Returns:
            ``ids_BT`` int64, padded on the right to the longest; ``is_completion_BT`` bool; the rows of each template.
        """
        # Padded on the right: positions of a row do not depend on its batch.
        longest = max(self.length(int(count)) for count in np.unique(action_tokens_B))
        ids_BT = np.full((len(source_BN), longest), self._vlm.pad_id, np.int64)
        is_completion_BT = np.zeros(ids_BT.shape, np.bool_)
        start_B = np.cumsum(action_tokens_B) - action_tokens_B
        groups = []
        # A block a length of action: the template is copied and three sets of columns are filled.
        for count in np.unique(action_tokens_B).tolist():
            template = self.template(count)
            rows = np.flatnonzero(action_tokens_B == count)
            block = np.repeat(template.ids_T[None], len(rows), axis=0)
            block[:, template.source_at_N] = self._row_of_code[source_BN[rows]]
            block[:, template.target_at_N] = self._row_of_code[target_BN[rows]]
            block[:, template.action_at] = action_A[start_B[rows][:, None] + np.arange(count)]
            ids_BT[rows, : block.shape[1]] = block
            is_completion_BT[rows, : block.shape[1]] = template.is_completion_T
            groups.append((rows, template))
        return ids_BT, is_completion_BT, groups

    def _lay_out(self, action_tokens: int) -> Template:
        count = self._vlm.tokens_per_image
        # Numbers below 0 are nobody's id: they say which value comes where.
        source, target = range(-count, 0), range(-2 * count, -count)
        action = range(-2 * count - action_tokens, -2 * count)
        segments = self._vlm.layout_ids(self._task, source=source, action=action, target=target)
        ids_T = np.array([token for segment in segments for token in segment.ids], np.int64)
        lengths = [len(segment.ids) for segment in segments]
        is_completion_T = np.repeat(np.array([segment.is_completion for segment in segments], np.bool_), lengths)
        is_image_T = np.repeat(np.array([segment.is_image for segment in segments], np.bool_), lengths)
        order = np.argsort(ids_T, kind="stable")[: action_tokens + 2 * count]
        return Template(
            ids_T,
            is_completion_T,
            source_at_N=order[action_tokens + count :],
            target_at_N=order[action_tokens : action_tokens + count],
            action_at=order[:action_tokens],
            weighted_at=np.flatnonzero(is_completion_T & is_image_T),
        )
