"""Check Ray Serve's options of a deployment before anything starts: Ray itself ignores a misspelt key of
``autoscaling_config``, and reports other mistakes minutes later, from another process.

Shape of an options table: keyword arguments of ``@serve.deployment``, as they are.
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping

from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import RayActorOptionsSchema

DeploymentOptions = dict[str, object]
# Of the deployments with models.
SERVER_DEFAULTS: DeploymentOptions = {
    "max_constructor_retry_count": 2,
    # Their images grow together, as many as the memory holds; the others wait.
    "max_ongoing_requests": 16,
    "max_queued_requests": 64,
    # A health check decodes a token, in its turn.
    "health_check_timeout_s": 60.0,
    "graceful_shutdown_timeout_s": 30.0,
    "ray_actor_options": {"num_cpus": 1, "num_gpus": 0},
}
# Options that are not a recipe's: an application of ours gives them, or needs none.
_OURS = ("name", "version", "user_config")


def check_options(options: DeploymentOptions) -> None:
    """Raise ValueError if Ray Serve would not take the options of a deployment; the message names Ray's keys."""
    parameters = [name for name in inspect.signature(serve.deployment).parameters if not name.startswith("_")]
    _check_keys(options, [name for name in parameters if name not in _OURS], "")
    for table, keys in (
        ("autoscaling_config", AutoscalingConfig.model_fields),
        ("ray_actor_options", RayActorOptionsSchema.model_fields),
    ):
        value = options.get(table)
        if isinstance(value, Mapping):
            _check_keys(value, keys, f"{table}.")
    try:
        RayActorOptionsSchema.model_validate(options.get("ray_actor_options", {}))
        serve.deployment(object, name="check", **options)
    except (TypeError, ValueError) as error:  # pydantic's errors are ValueErrors
        message = " ".join(str(error).split())[:300]
        raise ValueError(f"Ray Serve refuses these options: {message}") from error


def merge_options(defaults: DeploymentOptions, options: DeploymentOptions) -> DeploymentOptions:
    """Merge two tables of options; those of the actor are merged key by key.

    Args:
        defaults: For what ``options`` leaves out.
        options: A recipe's.
    """
    actor_options: dict[str, object] = {}
    for table in (defaults, options):
        value = table.get("ray_actor_options")
        actor_options |= value if isinstance(value, dict) else {}
    return defaults | options | {"ray_actor_options": actor_options}


def _check_keys(table: Mapping[str, object], rays_names: Iterable[str], prefix: str) -> None:
    names = list(rays_names)
    for key in table:
        if key not in names:
            nearest = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {prefix}{nearest[0]}?" if nearest else f"Ray's are {', '.join(names)}"
            raise ValueError(f"unknown key {prefix}{key!s:.80}; {hint}")
