"""The two models behind the ingress. They move arrays in and out of ``wm.dynamics``, and hold no method."""

from typing import Any

import numpy as np

from serve_apps.recipe import ServeRecipe
from wm.images import Pixels

FDM, IDM = "fdm", "idm"


def _describe(model: Any, task: str) -> dict[str, Any]:
    return {
        "task": task,
        "family": model.family,
        "base": model.base_id,
        "codec": model.codec_id,
        "tokens_per_image": model.tokens_per_image,
    }


class Sampler:
    """Source image and action to candidate codes, and codes back to pixels: the FDM and the image codec."""

    def __init__(self, recipe: ServeRecipe) -> None:
        import torch

        from wm.models import load_codec, load_model
        from wm.sampling import Decoder

        torch.set_num_threads(max(1, int(recipe.cpus_per_replica)))
        self._model = load_model(recipe.fdm, base=recipe.base, device=recipe.device)
        self._decoder = Decoder(self._model)  # once: it merges the adapter and packs the weights
        self._codec = load_codec(recipe.base or recipe.fdm, device=recipe.device)

    def describe(self) -> dict[str, Any]:
        """What ``GET /v1/models`` tells, and ``side_px`` of the square images read and written."""
        return _describe(self._model, FDM) | {"side_px": self._codec.side_px}

    def sample(self, source_HWC: Pixels, action: str, num_samples: int, seed: int, settings: dict[str, Any]) -> Any:
        """Codes of the source (N,) and of the candidates (K, N), and the number of the action's tokens."""
        from wm.dynamics import Sampling, sample_observations

        # Arrays from Ray's object store are read-only, which torch does not like.
        source_BN = self._codec.encode(np.array(source_HWC)[None])
        codes_BKN = sample_observations(
            self._model,
            source_BN,
            [action],
            num_samples=num_samples,
            sampling=Sampling(**settings),
            seed=seed,
            decoder=self._decoder,
        )
        return (
            source_BN[0].cpu().numpy(),
            codes_BKN[0].cpu().numpy(),
            len(self._model.tokenize_action(action)),
        )

    def decode(self, codes_KN: np.ndarray) -> Pixels:
        """Pixels (K, height, width, 3) of codes."""
        import torch

        return self._codec.decode(torch.from_numpy(np.array(codes_KN)))


class Verifier:
    """Ranks candidates by how likely the IDM finds the action between the source and each of them."""

    def __init__(self, recipe: ServeRecipe) -> None:
        import torch

        from wm.models import load_model
        from wm.sampling import Decoder

        torch.set_num_threads(max(1, int(recipe.cpus_per_replica)))
        self._model = load_model(recipe.idm, base=recipe.base, device=recipe.device)
        self._decoder = Decoder(self._model)

    def describe(self) -> dict[str, Any]:
        return _describe(self._model, IDM)

    def rank(self, source_N: np.ndarray, action: str, codes_KN: np.ndarray, seed: int) -> list[dict[str, Any]]:
        """Best first: what the reply says of each candidate; ``index`` is its row in ``codes_KN``."""
        import torch

        from wm.dynamics import verify

        source, candidates = torch.from_numpy(np.array(source_N)), torch.from_numpy(np.array(codes_KN))
        ranked = verify(self._model, source, action, candidates, seed=seed, decoder=self._decoder)
        return [_entry(candidate) for candidate in ranked]


def _entry(candidate: Any) -> dict[str, Any]:
    """What the reply tells of a ``wm.dynamics.Candidate``; logprob in nats, rank 0 is best."""
    return {
        "logprob": candidate.score.logprob,
        "mean_logprob": candidate.score.mean_logprob,
        "tokens": candidate.score.num_tokens,
        "rank": candidate.rank,
        "seed": candidate.seed,
        "index": candidate.index,
        "duplicate_of": candidate.duplicate_of,
    }
