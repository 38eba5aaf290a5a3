"""Refuse to answer other machines without keys, however the server was started.

``python -m serve_apps`` knows its own ``host``. A YAML file (``serve deploy``, ``serve run FILE``, RayService) gives it
to Ray Serve as ``http_options.host``, and a cluster may have had one before: then Serve's controller is asked.
Not known here: what the keys may do.
"""

from ipaddress import ip_address

from serve_apps.recipe import ServeRecipe
from wm.errors import InputError

CONTROLLER_WAITS_S = 30.0


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is reached from this machine alone; no name but localhost is taken as
    one."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_proxy_host() -> str | None:
    """Ask Ray Serve's controller which address the proxies listen on.

    Returns:
        The address; None if this process is in no Ray session, or no Serve runs there, or Serve has no proxies.
    """
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    if not ray.is_initialized():
        return None
    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None  # no Serve was started: whoever starts it builds the application first
    # As a future: in a replica, which is an async actor, Ray warns of ray.get().
    host: str | None = controller.get_http_config.remote().future().result(CONTROLLER_WAITS_S).host
    return host


def check_guarded(recipe: ServeRecipe, host: str | None) -> None:
    """Check that other machines are asked for keys, or that the recipe lets them in without.

    Args:
        recipe: What is served.
        host: Address that Serve's proxies listen on; None if there are none.

    Raises:
        InputError: They would be let in, and ``keys`` and ``open`` are left out.
    """
    if host is None or is_loopback(host) or recipe.keys or recipe.open:
        return
    raise InputError(
        f"http_options.host = {host!r} lets other machines in, and nobody would be asked for a key: give keys: FILE in "
        "the application's args (`python -m serve_apps.keys name=NAME >> FILE` makes one), or open: true there, or "
        "start Serve with http_options.host: 127.0.0.1"
    )
