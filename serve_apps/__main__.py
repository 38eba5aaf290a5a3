"""Serve two models until Ctrl-C: ``python -m serve_apps fdm=DIR idm=DIR port=8000``."""

import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from serve_apps.middleware.proxy import IMPORT_PATH, has_middlewares, set_environment
from serve_apps.quiet import quiet_end, without_ray_threads
from serve_apps.recipe import ServeRecipe, check_models
from serve_apps.world_model import build
from wm import cli
from wm.errors import InputError
from wm.private_session import joined_session, private_session

APPLICATION = "world_model"
RAY_SERVE_SETTINGS = {
    # Two threads beside a deployment's own are for code that blocks its event loop. Ours does not: models have a thread
    # of their own. Without the other two a request changes threads less often.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Calls between deployments go from process to process, not as Ray's tasks: a tenth less for one of a nano model.
    # Every replica has the port for them with or without this: serve_apps.loopback says who reaches it.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
}
OBJECT_STORE_BYTES = 256 * 2**20
PROXY_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
NO_MIDDLEWARES = (
    "warning: the proxy of this Ray session lacks the middleware of serve_apps: it obeys headers of any client, "
    f"and loses what a killed HTTP process was asked. Set {PROXY_VARIABLE}={IMPORT_PATH} on every node first"
)
# Beyond the time limit: the app itself gives requests up, in OpenAI's form.
PROXY_WAITS_S = 10


class StartRecipe(ServeRecipe):
    """What to serve, and where to listen."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in: that needs keys = FILE, or open = true."""
    open: bool = False
    """Whether other machines may ask without a key."""
    port: int = Field(8000, ge=1, le=65535)
    """TCP port."""

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if not (self.keys or self.open or _is_loopback(self.host)):
            raise ValueError(
                f"host = {self.host!r} lets other machines in, and nobody would be asked for a key: give keys=FILE "
                "(`python -m serve_apps.keys` makes keys), or open=true"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def start(recipe: StartRecipe) -> None:
    """Start Ray if no session is there, then the application; returns once it answers.

    The session is a private one, guarded by a token, or with ``RAY_ADDRESS`` set the cluster of that name.
    """
    # 1. What is wrong with the recipe is said before Ray starts: that takes seconds.
    check_models(recipe)
    _check_port(recipe.host, recipe.port)
    set_environment(recipe.keys and str(Path(recipe.keys).resolve()), recipe.cors_origins)
    _connect()
    # 2. The session, then the proxy and the application.
    from ray import serve

    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": recipe.host, "port": recipe.port, "request_timeout_s": recipe.timeout_s + PROXY_WAITS_S},
    )
    settings = recipe.model_dump(exclude=set(StartRecipe.model_fields) - set(ServeRecipe.model_fields))
    application = build(ServeRecipe(**settings))
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise InputError(_why_not_running() or str(error)) from error
    # 3. A session that was there already may have been started without our middleware.
    if has_middlewares(recipe.host, recipe.port) is False:
        print(NO_MIDDLEWARES, file=sys.stderr)


def _why_not_running() -> str | None:
    """Return the message of the :class:`InputError` that a replica met while it loaded its model, if it was one."""
    from ray import serve

    deployments = serve.status().applications[APPLICATION].deployments.values()
    messages = re.findall(r"InputError: (.+)", "\n".join(deployment.message for deployment in deployments))
    return messages[-1] if messages else None


def stop() -> None:
    """End the application, and the session if it is this process's own."""
    import ray
    from ray import serve

    if ray.is_initialized():  # else serve would start it anew
        with quiet_end():
            serve.shutdown()
            ray.shutdown()


def run(recipe: StartRecipe, *, dry_run: bool = False) -> None:
    """Serve until interrupted.

    Args:
        recipe: What to serve, and where.
        dry_run: Whether to check the models and the port alone, and start nothing.
    """
    url = f"http://{recipe.host}:{recipe.port}"
    if dry_run:
        check_models(recipe)
        _check_port(recipe.host, recipe.port)
        print(f"would serve fdm {recipe.fdm} and idm {recipe.idm} at {url}")
        return
    print(f"starting: fdm {recipe.fdm}, idm {recipe.idm}", flush=True)
    if recipe.open and not recipe.keys and not _is_loopback(recipe.host):
        print(f"warning: whoever reaches {recipe.host} port {recipe.port} may ask: no keys are given", file=sys.stderr)
    with without_ray_threads():
        _serve_until_interrupted(recipe, url)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return cli.main(
        StartRecipe, run, name="serve_apps", prog="python -m serve_apps", description=__doc__ or "", argv=argv
    )


def _serve_until_interrupted(recipe: StartRecipe, url: str) -> None:
    # A supervisor may give up a server that still loads: what Ray has started by then is ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        start(recipe)
        # Again: Ray has set its own handler meanwhile, which aborts.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(
            f"serving at {url}/v1 (playground: {url}/, reference: {url}/docs). Ctrl-C stops it.",
            flush=True,
        )
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        # Whoever is impatient and asks again does not break off what is ending already: half a session would be left.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        stop()


def _connect() -> None:
    # Ray's processes inherit the environment: it is set before any of them starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(PROXY_VARIABLE, IMPORT_PATH)
    for name, value in RAY_SERVE_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("ray.serve", "ray._private.authentication.authentication_token_setup"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        return
    from ray._private import ray_constants

    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        with joined_session(ray_constants, address):
            ray.init()
        return
    # Replicas wait more than they compute: more of them than the machine has cores may run.
    with private_session(ray_constants) as private:
        ray.init(
            "local",
            **private,
            num_cpus=max(8, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _check_port(host: str, port: int) -> None:
    """Ray would wait long and say little; ask the system first."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}; give another port=") from error


if __name__ == "__main__":
    sys.exit(main())
