"""The two models behind the ingress. They move arrays in and out of ``wm.dynamics``, and hold no method."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from serve_apps.recipe import ServeRecipe
from wm.images import Pixels

if TYPE_CHECKING:  # torch is for the replicas alone; the ingress starts without it
    from serve_apps.model_thread import ModelThread

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
    """Source image and action to candidate codes, and codes back to pixels: the FDM and the image codec.

    The images of all requests grow together in one thread. ``role``: the FDM and its decoder as they were loaded
    together with the IDM's, and ``thread``, in which both work; read and made here without them.
    """

    def __init__(self, recipe: ServeRecipe, role: Any = None) -> None:
        from serve_apps.model_thread import ModelThread
        from wm.dynamics import check_block
        from wm.models import load_codec
        from wm.sampling import ImagePool
        from wm.sampling.guidance import need_guidable

        role = role or _load(recipe, recipe.fdm)
        self._model, self._decoder, self._block = role.model, role.decoder, recipe.block
        if (recipe.guidance, recipe.guidance_image) != (1.0, 1.0):
            need_guidable(self._model)
        check_block(self._block, self._model.tokens_per_image)
        self._codec = load_codec(recipe.base or recipe.fdm, device=recipe.device)
        self._codec.need_decoder()
        self.thread = ModelThread(ImagePool(self._model, self._decoder))

    def describe(self, task: str = FDM) -> dict[str, Any]:
        """What ``GET /v1/models`` tells, and ``side_px`` of the square images read and written."""
        return _describe(self._model, task) | {"side_px": self._codec.side_px}

    async def check_health(self) -> None:
        """Decodes a token, in its turn; raises what that raises."""
        await self.thread.call(partial(_decode_a_token, self._model, self._decoder))

    async def sample(
        self, source_HWC: Pixels, action: str, num_samples: int, seed: int, settings: dict[str, Any]
    ) -> Any:
        """Codes of the source (N,) and of the candidates (K, N), and the number of the action's tokens."""
        from wm.dynamics.fdm import forward_prefix
        from wm.sampling import ImageRequest, Sampling

        # Arrays from Ray's object store are read-only, which torch does not like.
        source_BN = await self.thread.call(lambda: self._codec.encode(np.array(source_HWC)[None]))
        sampling = Sampling(**settings)
        if self._block:
            codes_KN = await self.thread.call(partial(self._speculate, source_BN, action, num_samples, seed, sampling))
        else:
            prefix = forward_prefix(self._model, source_BN[0], action)
            codes_KN = await self.thread.images(ImageRequest(prefix, num_samples, sampling, seed))
        return source_BN[0].cpu().numpy(), codes_KN.numpy(), len(self._model.tokenize_action(action))

    def _speculate(self, source_BN: Any, action: str, num_samples: int, seed: int, sampling: Any) -> Any:
        from wm.dynamics import speculate_observations

        return speculate_observations(
            self._model,
            source_BN,
            [action],
            block=self._block,
            num_samples=num_samples,
            sampling=sampling,
            seed=seed,
            decoder=self._decoder,
        ).codes[0]

    async def decode(self, codes_KN: np.ndarray) -> Pixels:
        """Pixels (K, height, width, 3) of codes."""
        import torch

        codes = torch.from_numpy(np.array(codes_KN))
        return await self.thread.call(lambda: self._codec.decode(codes))


class Verifier:
    """Ranks candidates by how likely the IDM finds the action between the source and each of them."""

    def __init__(self, recipe: ServeRecipe, role: Any = None, thread: "ModelThread | None" = None) -> None:
        from serve_apps.model_thread import ModelThread

        role = role or _load(recipe, recipe.idm)
        self._model, self._decoder = role.model, role.decoder
        self._thread = thread or ModelThread()

    def describe(self, task: str = IDM) -> dict[str, Any]:
        return _describe(self._model, task)

    async def check_health(self) -> None:
        """Decodes a token, in its turn; raises what that raises."""
        await self._thread.call(partial(_decode_a_token, self._model, self._decoder))

    async def rank(self, source_N: np.ndarray, action: str, codes_KN: np.ndarray, seed: int) -> list[dict[str, Any]]:
        """Best first: what the reply says of each candidate; ``index`` is its row in ``codes_KN``."""
        import torch

        from wm.dynamics import verify

        source, candidates = torch.from_numpy(np.array(source_N)), torch.from_numpy(np.array(codes_KN))
        ranked = await self._thread.call(
            lambda: verify(self._model, source, action, candidates, seed=seed, decoder=self._decoder)
        )
        return [_entry(candidate) for candidate in ranked]


class Both:
    """Sampler and verifier in one process and one thread, over one copy of their base's weights or two."""

    def __init__(self, recipe: ServeRecipe) -> None:
        from wm.dynamics import load_roles

        weights: Any = recipe.roles
        roles = load_roles(recipe.fdm, recipe.idm, weights=weights, **_how(recipe))
        self._sampler = Sampler(recipe, roles.fdm)
        self._verifier = Verifier(recipe, roles.idm, self._sampler.thread)

    def describe(self, task: str) -> dict[str, Any]:
        """Of the model that does ``task``."""
        return self._sampler.describe() if task == FDM else self._verifier.describe()

    async def check_health(self) -> None:
        """Both decode a token, in their turn."""
        await self._sampler.check_health()
        await self._verifier.check_health()

    async def sample(
        self, source_HWC: Pixels, action: str, num_samples: int, seed: int, settings: dict[str, Any]
    ) -> Any:
        """See :meth:`Sampler.sample`."""
        return await self._sampler.sample(source_HWC, action, num_samples, seed, settings)

    async def decode(self, codes_KN: np.ndarray) -> Pixels:
        """See :meth:`Sampler.decode`."""
        return await self._sampler.decode(codes_KN)

    async def rank(self, source_N: np.ndarray, action: str, codes_KN: np.ndarray, seed: int) -> list[dict[str, Any]]:
        """See :meth:`Verifier.rank`."""
        return await self._verifier.rank(source_N, action, codes_KN, seed)


def _decode_a_token(model: Any, decoder: Any) -> None:
    import torch

    with torch.no_grad():
        _, last_PH = decoder.prefill([[model.bos_id]])
        decoder.image_logits(last_PH)


def _load(recipe: ServeRecipe, folder: str) -> Any:
    """One role; its adapter is merged into the weights."""
    from wm.dynamics import load_role

    return load_role(folder, **_how(recipe))


def _how(recipe: ServeRecipe) -> dict[str, Any]:
    """Where models are read to; the process takes its number of threads."""
    import torch

    torch.set_num_threads(max(1, int(recipe.cpus_per_replica)))
    return {"base": recipe.base, "device": recipe.device, "dtype": getattr(torch, recipe.dtype)}


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
