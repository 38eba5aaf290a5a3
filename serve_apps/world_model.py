"""The world model as a Ray Serve application: ingress → FDM server → IDM server, a ledger of the keys' limits where
there are several ingresses, and the owner of the store of votes where models are compared.

``serve run serve_apps/world_model.yaml``, ``serve run serve_apps.world_model:build fdm=DIR idm=DIR`` or
``wm serve fdm=DIR idm=DIR``. Both servers are one deployment where ``base_sharing`` says so.
"""

from collections.abc import Callable
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from ray import serve

from serve_apps.checks import check_models, is_toy
from serve_apps.comparisons import list_folders
from serve_apps.deployment_options import DeploymentOptions
from serve_apps.exposure import check_guarded, find_proxy_host
from serve_apps.ingress import Ingress
from serve_apps.names import FDM, IDM
from serve_apps.recipe import ServeRecipe
from wm.files.mirror import uri_of
from wm.packaged import resolve_packaged

SHIPPED = Path(__file__).with_name("world_model.yaml")
PATHS = ("fdm", "idm", "base", "baseline", "adapters", "examples")
TOY_EXAMPLES = "nano:images"
# It adds numbers: every ingress may ask at once.
LEDGER_OPTIONS: DeploymentOptions = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}}
# Its file is on one disk: of the head node, which every Ray cluster has and marks by this resource.
VOTES_OPTIONS: DeploymentOptions = {
    "max_constructor_retry_count": 2,
    "ray_actor_options": {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
}


def build(args: ServeRecipe) -> serve.Application:
    """Build the application of a recipe: what ``serve run`` and the YAML file name.

    Raises:
        InputError: For models that are not there or do not go together (see :func:`check_models`); or where Serve
            listens beyond this machine already, without keys. The ingress checks that again: here Serve may not run
            yet.
    """
    check_guarded(args, find_proxy_host())
    return bind(args, check_models(args))


def bind(args: ServeRecipe, codec_id: str) -> serve.Application:
    """Build the application of a recipe that has been checked.

    Args:
        args: The recipe.
        codec_id: What :func:`check_models` returned.
    """
    if args.examples is None and is_toy(codec_id):
        args = args.model_copy(update={"examples": resolve_packaged(TOY_EXAMPLES)})
    args = resolve_paths(args)
    ingress = serve.deployment(Ingress, name="Ingress").options(**args.ingress_options())
    # Without the recipe: a new one replaces the ingresses, and what their keys have used stays known.
    limits = None
    if args.shares_limits:
        limits = _deployment("serve_apps.ledger", "LimitsServer", LEDGER_OPTIONS | args.log_options()).bind()
    votes = None
    if args.comparisons:
        keeper = _deployment("serve_apps.comparisons", "ComparisonServer", VOTES_OPTIONS | args.log_options())
        votes = keeper.bind(args.comparisons, list_folders(args))
    if args.base_sharing != "separate":
        models = _deployment("serve_apps.fdm_server", "WorldModelServer", args.server_options(FDM)).bind(args)
        return ingress.bind(args, models, models, limits, votes)
    fdm = _deployment("serve_apps.fdm_server", "FDMServer", args.server_options(FDM))
    idm = _deployment("serve_apps.idm_server", "IDMServer", args.server_options(IDM)).bind(args)
    return ingress.bind(args, fdm.bind(args, idm), idm, limits, votes)


def resolve_paths(args: ServeRecipe) -> ServeRecipe:
    """Return the same recipe for workers, which may run in another folder.

    Args:
        args: The recipe, with paths relative to this process's folder.
    """
    # Nodes keep their copies of buckets elsewhere: of those the URI is passed.
    paths: dict[str, object] = {
        key: uri_of(value) or str(Path(value).resolve()) for key in PATHS if (value := getattr(args, key))
    }
    if args.pixels is not None and args.pixels.base:
        base = uri_of(args.pixels.base) or str(Path(args.pixels.base).resolve())
        paths["pixels"] = args.pixels.model_copy(update={"base": base})
    if args.keys:
        # Links stay: Kubernetes leads the file of a Secret through one that is set anew when its keys change, and that
        # leads elsewhere on every node.
        paths["keys"] = str(Path(args.keys).absolute())
    if args.comparisons:
        paths["comparisons"] = str(Path(args.comparisons).absolute())
    return args.model_copy(update=paths)


def _deployment(module: str, name: str, options: DeploymentOptions) -> serve.Deployment:
    """Name a class that replicas import: whoever starts a server need not wait for torch and transformers."""
    decorate: Callable[[object], serve.Deployment] = serve.deployment(name=name)
    return decorate(f"{module}.{name}").options(**options)


def __getattr__(name: str) -> serve.Application:
    """``app``: the application of ``world_model.yaml``, built when it is asked for (``serve build
    serve_apps.world_model:app``)."""
    if name != "app":
        raise AttributeError(name)
    args = yaml.safe_load(SHIPPED.read_text())["applications"][0]["args"]
    return build(ServeRecipe.model_validate(args))
