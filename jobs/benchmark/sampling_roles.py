"""Measure both roles over one base, adapters beside the weights, against two merged copies: seconds a step, bytes."""

import torch
from peft import LoraConfig, get_peft_model

from jobs.benchmark.harness import Figures, Seconds, turns
from jobs.benchmark.sampling_models import Shape, ShapeModel
from jobs.benchmark.sampling_work import build_step
from wm.dynamics.roles import Role, Roles
from wm.models.adapters import quiet_peft
from wm.models.sharing import twin_of
from wm.sampling import build_model_runner
from wm.training.adapters import ATTENTION_AND_MLP, Lora


def role_figures(
    shape: Shape, rows: int, ratios: dict[str, float], *, rounds: int, repeats: int
) -> tuple[Seconds, Figures]:
    """Measure a step of each way, and the bytes of both roles.

    Adapters have the training recipe's rank and are on every matrix of a layer.

    Args:
        shape: Of the base.
        rows: Candidates of a source, N; a single one is measured too.
        ratios: Gets ``shared_over_merged_step_b1``, ``…_b8`` and ``shared_over_merged_bytes``.
        rounds: Turns of each kind of step.
        repeats: Times that a short step is done in a turn.

    Returns:
        Seconds of a step in each round, and the figures.
    """
    base = ShapeModel(shape)
    shared, merged = (_build_roles(base, rows, is_shared) for is_shared in (True, False))
    # Half-way through the image: the mean of what attention reads.
    position = shape.target // 2
    work = {
        f"{name}_b{count}": build_step(base, roles.fdm.runner, count, position)
        for count in (1, rows)
        for name, roles in (("shared", shared), ("merged", merged))
    }
    seconds = turns(work, rounds, repeats=repeats)
    for count, name in ((1, "b1"), (rows, "b8")):
        ratios[f"shared_over_merged_step_{name}"] = min(seconds[f"shared_b{count}"]) / min(seconds[f"merged_b{count}"])
    # Weights and packed copies, what is shared counted once.
    sizes = {"shared": shared.num_bytes(), "merged": merged.num_bytes()}
    ratios["shared_over_merged_bytes"] = sizes["shared"] / sizes["merged"]
    return seconds, {"bytes": sizes, "rank": Lora().r}


def _build_roles(base: ShapeModel, rows: int, is_shared: bool) -> Roles:
    roles: list[Role] = []
    for seed in (1, 2):
        model = twin_of(base) if is_shared else ShapeModel(base.shape)
        with torch.random.fork_rng(devices=[]), quiet_peft():
            torch.manual_seed(seed)
            size = {"r": Lora().r, "lora_alpha": Lora().alpha, "target_modules": ATTENTION_AND_MLP}
            # Random adapters: those that PEFT starts with would change nothing.
            config = LoraConfig(**size, init_lora_weights=False)
            model.module = get_peft_model(model.module, config).eval()
        if not is_shared:
            model.module = model.module.merge_and_unload()
        # Both roles over one base share the packed copies of its weights.
        beside = roles[0].runner if roles and is_shared else None
        roles.append(Role(model, build_model_runner(model, rows=rows, merge=not is_shared, beside=beside)))
    return Roles(*roles)
