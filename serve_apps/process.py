"""What the models in one process share: the thread that works with them, the image codec, a base's weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from serve_apps.model_thread import ModelThread
from serve_apps.recipe import FDM, IDM, ServeRecipe
from wm.dynamics import Role, find_shared_base, load_role, load_roles
from wm.models import ImageCodec, load_codec
from wm.models.protocol import UnifiedVLM
from wm.sampling import ModelRunner


@dataclass(frozen=True)
class Process:
    """``roles``: the recipe's own models that are here, by their task. ``base``: the bare one that models here lie
    over, where they share it."""

    recipe: ServeRecipe
    thread: ModelThread
    codec: ImageCodec
    roles: dict[str, Role]
    base: Role | None


def start_process(recipe: ServeRecipe, tasks: Sequence[str]) -> Process:
    """Read the recipe's models for ``tasks``. The process takes its number of threads."""
    torch.set_num_threads(max(1, int(recipe.cpus_per_replica)))
    how: dict[str, Any] = {"device": recipe.device, "dtype": getattr(torch, recipe.dtype)}
    folders = {FDM: recipe.fdm, IDM: recipe.idm}
    base = None
    if recipe.adapters or recipe.roles == "shared":
        base = load_role(find_shared_base(recipe.fdm, recipe.idm, recipe.base), **how)
        roles = {task: load_role(folders[task], base=recipe.base, over=base) for task in tasks}
    elif len(tasks) > 1:
        both = load_roles(recipe.fdm, recipe.idm, base=recipe.base, **how)
        roles = {FDM: both.fdm, IDM: both.idm}
    else:
        roles = {task: load_role(folders[task], base=recipe.base, **how) for task in tasks}
    codec = load_codec(recipe.base or folders[tasks[0]], device=recipe.device)
    return Process(recipe, ModelThread(), codec, roles, base)


def described(model: UnifiedVLM, task: str, codec: ImageCodec) -> dict[str, Any]:
    """Describe what ``GET /v1/models`` reports of a model; ``side_px``: of the square images it reads and writes."""
    return {
        "task": task,
        "family": model.family,
        "base": model.base_id,
        "codec": model.codec_id,
        "tokens_per_image": model.tokens_per_image,
        "side_px": codec.side_px,
    }


@torch.no_grad()
def decode_a_token(model: UnifiedVLM, runner: ModelRunner) -> None:
    """Decode a token, as a health check does; raises what that raises."""
    _, last_PH = runner.prefill([[model.bos_id]])
    runner.image_logits(last_PH)
