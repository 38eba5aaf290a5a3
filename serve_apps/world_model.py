"""The world model as a Ray Serve application: ingress → FDM sampler → IDM verifier.

``serve run serve_apps/world_model.yaml``, ``serve run serve_apps.world_model:build fdm=DIR idm=DIR`` or
``python -m serve_apps fdm=DIR idm=DIR``. The deployments move data; the method is in ``wm.dynamics``. Sampler and
verifier are one deployment where ``roles`` says so.
"""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from ray import serve

from serve_apps.ingress import Ingress
from serve_apps.recipe import FDM, IDM, ServeRecipe, check_models
from serve_apps.replicas import Replica

SHIPPED = Path(__file__).with_name("world_model.yaml")
PATHS = ("fdm", "idm", "base", "adapters", "keys")
FOR_REFUSALS = 256
"""Requests at a time beyond those being answered: pages, health checks, and those that are refused as too many."""


def build(args: ServeRecipe) -> serve.Application:
    """Build the application of a recipe: what ``serve run`` and the YAML file name.

    Raises :class:`InputError` for models that are not there or do not go together (see :func:`check_models`).
    """
    check_models(args)
    # Workers may run in another folder.
    paths = {key: str(Path(value).resolve()) for key in PATHS if (value := getattr(args, key))}
    args = args.model_copy(update=paths)
    both = serve.deployment(Replica, name="FDMAndIDM", **_deployed(args, "sampler"))
    sampler = serve.deployment(Replica, name="FDMSampler", **_deployed(args, "sampler"))
    verifier = serve.deployment(Replica, name="IDMVerifier", **_deployed(args, "verifier"))
    # The ingress waits more than it computes: no core is set aside, so that two cores serve both models.
    ingress: Any = serve.deployment(
        Ingress,
        name="Ingress",
        num_replicas=args.ingress_replicas,
        max_ongoing_requests=args.max_requests + FOR_REFUSALS,
        max_queued_requests=args.max_requests + FOR_REFUSALS,
        ray_actor_options={"num_cpus": 0},
    )
    if args.roles != "apart":
        models = both.bind(args, (FDM, IDM))
        return ingress.bind(args, models, models)
    bound = verifier.bind(args, (IDM,))
    return ingress.bind(args, sampler.bind(args, (FDM,), bound), bound)


def __getattr__(name: str) -> Any:
    """``app``: the application of ``world_model.yaml``, made when it is asked for (``serve build
    serve_apps.world_model:app``)."""
    if name != "app":
        raise AttributeError(name)
    args = yaml.safe_load(SHIPPED.read_text())["applications"][0]["args"]
    return build(ServeRecipe.model_validate(args))


def _deployed(args: ServeRecipe, role: str) -> dict[str, Any]:
    """Build the options of a deployment: how many replicas of a role, what each needs, how it is asked."""
    least, most = getattr(args, f"{role}_replicas"), getattr(args, f"{role}_max_replicas")
    options: dict[str, Any] = {"num_replicas": least}
    if most:
        scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": args.target_ongoing_requests}
        delays = {"upscale_delay_s": args.upscale_delay_s, "downscale_delay_s": args.downscale_delay_s}
        options = {"autoscaling_config": scaling | delays}
    return options | {
        "max_constructor_retry_count": 2,
        "max_ongoing_requests": args.max_ongoing_requests,
        "max_queued_requests": args.max_queued_requests,
        "health_check_timeout_s": args.health_check_timeout_s,
        "graceful_shutdown_timeout_s": args.shutdown_timeout_s,
        "ray_actor_options": {"num_cpus": args.cpus_per_replica, "num_gpus": args.gpus_per_replica},
    }
