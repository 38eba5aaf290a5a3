"""Both protocols for unified models, whose images are codes of their codec.

Two of one codec exchange codes: nothing is decoded between them, and what they compute is what
:mod:`wm.dynamics.idm` and :mod:`wm.dynamics.fdm` compute of codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from wm.dynamics.fdm import sample_observations, speculate_observations
from wm.dynamics.idm import ScoredAction, propose_actions, score_actions
from wm.dynamics.observation import CodesRow, Observation, codes_of, observe_codes
from wm.dynamics.protocols import ModelKind, OnSamples, Samples
from wm.dynamics.roles import Role
from wm.dynamics.settings import Search, check_search
from wm.errors import InputError
from wm.models.codec.codec import ImageCodec
from wm.sampling.images import Progress
from wm.sampling.noise import Sampling


@dataclass(frozen=True)
class _CodeModel:
    """A role with its codec, which is needed where the other model reads or makes pixels, and may be left out else."""

    role: Role
    codec: ImageCodec | None = None
    model_id: str = ""
    kind: ModelKind = "codes"

    def __post_init__(self) -> None:
        """Raise :class:`InputError` if the codec is another model's."""
        if self.codec is not None and self.codec.codec_id != self.role.model.codec_id:
            raise InputError(f"the model's image codec is {self.role.model.codec_id}, this one {self.codec.codec_id}")

    def codes_of(self, observations: Sequence[Observation]) -> list[CodesRow]:
        """Return codes of this model's codec; images without them are encoded.

        Args:
            observations: Images.

        Raises:
            InputError: The codec is needed and was left out.
        """
        codec_id = self.role.model.codec_id
        if all(item.codec_id == codec_id for item in observations):
            return [item.codes for item in observations]
        if self.codec is None:
            raise InputError(f"images have to be encoded, and the model's codec {codec_id} is not at hand")
        return codes_of(observations, self.codec)

    @cached_property
    def _blank(self) -> CodesRow:
        # Any image will do where an action is checked: prompts have one length.
        return (0,) * self.role.model.tokens_per_image


class CodeInverse(_CodeModel):
    """A unified model as :class:`wm.dynamics.protocols.InverseModel`."""

    def check_action(self, action: str) -> None:
        """Raise :class:`InputError` if the model cannot read the action."""
        self.role.model.layout("idm", source=self._blank, target=self._blank, action=action)

    def propose(
        self,
        sources: Sequence[Observation],
        targets: Sequence[Observation],
        *,
        sampling: Sampling,
        seeds: Sequence[int],
        max_new_tokens: int = 32,
        batch_size: int | None = None,
    ) -> list[ScoredAction]:
        """Propose one action a pair; see :func:`wm.dynamics.idm.propose_actions`.

        Args:
            sources: Images before.
            targets: Images after, as many.
            sampling: How a token is sampled.
            seeds: One a pair.
            max_new_tokens: Tokens after which an action is ended.
            batch_size: Bound on the rows of a pass; what memory holds without it.
        """
        return propose_actions(
            self.role.model, self.codes_of(sources), self.codes_of(targets), sampling=sampling, seed=seeds,
            max_new_tokens=max_new_tokens, batch_size=batch_size, runner=self.role.runner,
        )  # fmt: skip

    def score(
        self,
        sources: Sequence[Observation],
        targets: Sequence[Observation],
        actions: Sequence[str],
        *,
        batch_size: int | None = None,
    ) -> list[ScoredAction]:
        """Score each action; see :func:`wm.dynamics.idm.score_actions`.

        Args:
            sources: Images before.
            targets: Images after, as many.
            actions: As many.
            batch_size: Bound on the rows of a pass; what memory holds without it.
        """
        return score_actions(
            self.role.model, self.codes_of(sources), self.codes_of(targets), actions, batch_size=batch_size,
            runner=self.role.runner,
        )  # fmt: skip


class CodeForward(_CodeModel):
    """A unified model as :class:`wm.dynamics.protocols.ForwardModel`."""

    def check_action(self, action: str) -> None:
        """Raise :class:`InputError` if the model cannot read the action."""
        self.role.model.layout("fdm", source=self._blank, action=action)

    def check_search(self, search: Search, sampling: Sampling) -> None:
        """Raise :class:`InputError` for drafts longer than an image, and for guidance of a family that has none.

        Args:
            search: How a prediction is searched for.
            sampling: How codes are sampled.
        """
        check_search(search, self.role.model)
        if sampling.is_guided:
            self.role.model.check_guidance()

    def sample(
        self,
        sources: Sequence[Observation],
        actions: Sequence[str],
        *,
        candidates: range,
        sampling: Sampling,
        seeds: Sequence[int],
        num_draft_tokens: int = 0,
        batch_size: int | None = None,
        on_progress: OnSamples | None = None,
    ) -> Samples:
        """Sample codes; see :func:`wm.dynamics.fdm.sample_observations`.

        Args:
            sources: Images before.
            actions: As many.
            candidates: Numbers of the candidates.
            sampling: How a code is sampled.
            seeds: One a row.
            num_draft_tokens: Codes drafted a pass; 0: one code a pass.
            batch_size: Bound on the candidate rows of a pass; what memory holds without it.
            on_progress: Called with the tokens of an image that are done, and their number, after each line.
        """
        fdm, runner = self.role.model, self.role.runner
        codes, passes_B = self.codes_of(sources), None
        # Counted only where drafts make the number vary.
        if num_draft_tokens:
            speculation = speculate_observations(
                fdm, codes, actions, num_candidates=len(candidates), num_draft_tokens=num_draft_tokens,
                first_candidate=candidates.start, sampling=sampling, seed=seeds, batch_size=batch_size, runner=runner,
            )  # fmt: skip
            codes_BKN, passes_B = speculation.codes, speculation.passes.sum(dim=1).tolist()
        else:

            def report(progress: Progress) -> None:
                if on_progress is not None:
                    on_progress(progress.codes.shape[-1], progress.tokens_per_image)

            codes_BKN = sample_observations(
                fdm, codes, actions, num_candidates=len(candidates), first_candidate=candidates.start,
                sampling=sampling, seed=seeds, batch_size=batch_size, runner=runner,
                on_progress=report if on_progress is not None else None,
            )  # fmt: skip
        codec = self.codec if self.codec is not None else fdm.codec_id
        return Samples([[*observe_codes(codes_KN, codec)] for codes_KN in codes_BKN.tolist()], passes_B)
