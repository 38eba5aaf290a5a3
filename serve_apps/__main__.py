"""Serve two models until Ctrl-C: ``wm serve fdm=DIR idm=DIR port=8000``, or the toy world's with ``wm serve`` alone.

Exit status: 0 once it served and was stopped, by Ctrl-C or SIGTERM; 130 where it was stopped before; 2 for bad input.
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Self

from wm.interrupts import INTERRUPTED, exit_on_interrupt

# Seconds, in which Ctrl-C is to print no traceback.
with exit_on_interrupt():
    from pydantic import Field, model_validator

    from serve_apps.checks import check_models, is_toy
    from serve_apps.exposure import is_loopback
    from serve_apps.interrupts import Interrupts
    from serve_apps.middleware.proxy import IMPORT_PATH, has_middlewares, set_environment
    from serve_apps.model_kinds import list_notices
    from serve_apps.ports import check_port
    from serve_apps.quiet import quiet_end, without_ray_threads
    from serve_apps.ray_settings import session_settings
    from serve_apps.recipe import ServeRecipe
    from serve_apps.start_failures import find_reason_of
    from serve_apps.takeover import check_takeover, end_application, leave_cluster
    from serve_apps.tracing import IMPORT_PATH as IMPORT_PATH_OF_TRACES
    from serve_apps.tracing import check_exporter
    from wm import cli
    from wm.errors import InputError
    from wm.files.mirror import shown
    from wm.packaged import to_packaged_name
    from wm.paths import ModelPath
    from wm.private_session import few_processes, joined_session, private_session

APPLICATION = "world_model"
OBJECT_STORE_BYTES = 256 * 2**20
PROXY_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
NO_MIDDLEWARES = (
    "warning: the proxy of this Ray session lacks the middleware of serve_apps: it obeys headers of any client, "
    f"and loses what a killed HTTP process was asked. Set {PROXY_VARIABLE}={IMPORT_PATH} on every node first"
)
NEEDS_OWN_SESSION = "it is for the session that wm serve starts itself, whose processes read it as they start"
TOY_NOTICE = (
    "these models know a toy world alone, squares, circles and triangles on a table of 48 x 48 pixels; "
    "for others: wm serve fdm=DIR idm=DIR"
)
# Beyond the time limit: the app itself gives requests up, in OpenAI's form.
PROXY_WAITS_S = 10


class StartRecipe(ServeRecipe):
    """What to serve, and where to listen."""

    fdm: ModelPath = Field("nano:fdm", validate_default=True)
    """Folder of the forward dynamics model: full, or an adapter. The default is installed with the package."""
    idm: ModelPath = Field("nano:idm", validate_default=True)
    """Folder of the inverse dynamics model that verifies: full, or an adapter. The default is installed with the
    package."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in: that needs keys = FILE, or open = true."""
    port: int = Field(8000, ge=1, le=65535)
    """TCP port."""
    direct_port: int | None = Field(None, ge=1, le=65535)
    """A second TCP port, without Ray's proxy: a small request is answered sooner there, but lost with the process that
    answers it, where port asks another. None if left out. Not with several ingresses, nor on a cluster."""
    traces: float = Field(0.0, ge=0, le=1)
    """Share of the requests that are traced by OpenTelemetry; spans go where OTEL_EXPORTER_OTLP_ENDPOINT says."""

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if not (self.keys or self.open or is_loopback(self.host)):
            raise ValueError(
                f"host = {self.host!r} lets other machines in, and nobody would be asked for a key: give keys=FILE "
                "(`python -m serve_apps.keys` makes keys), or open=true"
            )
        return self

    @model_validator(mode="after")
    def _check_direct_port(self) -> Self:
        if self.direct_port == self.port:
            raise ValueError(f"direct_port = {self.port} is port too: give another")
        if self.direct_port is not None and self.has_several_ingresses:
            raise ValueError(
                f"direct_port = {self.direct_port} with several ingresses: one process alone can listen on it; leave "
                "num_replicas and autoscaling_config out of ingress"
            )
        return self


def start(recipe: StartRecipe, interrupts: Interrupts | None = None) -> str:
    """Start Ray if no session is there, then the application; returns once it answers.

    The session is a private one, guarded by a token, or with ``RAY_ADDRESS`` set the cluster of that name.

    Args:
        recipe: What to serve, and where.
        interrupts: Held while Ray starts: half a session could not be ended. None: signals are not this function's.

    Returns:
        The id of the image codec that the models speak.

    Raises:
        InputError: The recipe cannot be served; or a replica met one, or memory did not suffice, as it started.
    """
    # 1. What is wrong with the recipe is said before Ray starts: that takes seconds.
    port_error = _find_port_error(recipe)
    with exit_on_interrupt():  # torch is imported
        if recipe.traces:
            check_exporter()
        codec_id = check_models(recipe)
        from serve_apps.world_model import bind
    settings = recipe.model_dump(exclude=set(StartRecipe.model_fields) - set(ServeRecipe.model_fields))
    application = bind(ServeRecipe(**settings), codec_id)
    set_environment(recipe.keys and str(Path(recipe.keys).absolute()), recipe.cors_origins)
    # 2. The session and the proxy, then the application.
    for begin in (partial(_connect, recipe, port_error), partial(_start_proxy, recipe)):
        with interrupts.hold() if interrupts else nullcontext():
            begin()
    from ray import serve

    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise InputError(find_reason_of(APPLICATION) or str(error)) from error
    # 3. A session that was there already may have been started without our middleware.
    if has_middlewares(recipe.host, recipe.port) is False:
        print(NO_MIDDLEWARES, file=sys.stderr)
    return codec_id


def _find_port_error(recipe: StartRecipe) -> InputError | None:
    """Check the ports; return the error of ``port`` where the cluster to be joined may listen there itself."""
    if recipe.direct_port is not None:
        if _joins_cluster():
            raise InputError(f"direct_port = {recipe.direct_port} with RAY_ADDRESS: {NEEDS_OWN_SESSION}")
        check_port(recipe.host, recipe.direct_port, "direct_port")
    try:
        check_port(recipe.host, recipe.port)
    except InputError as error:
        if not _joins_cluster():
            raise
        return error
    return None


def _joins_cluster() -> bool:
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def _start_proxy(recipe: StartRecipe) -> None:
    from ray import serve

    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": recipe.host, "port": recipe.port, "request_timeout_s": recipe.timeout_s + PROXY_WAITS_S},
        # The proxy's and the controller's log; the replicas have it from their deployments.
        logging_config=recipe.log_options().get("logging_config"),
        # Left out, Ray's own variables decide.
        tracing_config=(
            {"enabled": True, "exporter_import_path": IMPORT_PATH_OF_TRACES, "sampling_ratio": recipe.traces}
            if recipe.traces
            else None
        ),
    )


def stop() -> None:
    """End the application, and the session if it is this process's own; on a cluster, what others serve there stays."""
    with quiet_end():
        end_application(APPLICATION, is_shared=_joins_cluster())
        # Also of a session that failed to start.
        leave_cluster()


def run(recipe: StartRecipe, *, dry_run: bool = False) -> None:
    """Serve until interrupted.

    Args:
        recipe: What to serve, and where.
        dry_run: Whether to check the models and the port alone, and start nothing.
    """
    models = f"fdm {shown(to_packaged_name(recipe.fdm))} and idm {shown(to_packaged_name(recipe.idm))}"
    if dry_run:
        if (port_error := _find_port_error(recipe)) is not None:
            _connect(recipe, port_error)  # joins the cluster, whose Ray Serve may have the port
            leave_cluster()
        if recipe.traces:
            check_exporter()
        notices = [TOY_NOTICE] if is_toy(check_models(recipe)) else []
        print(f"would serve {models} at {_url(recipe.host, recipe.port)}", *notices, *list_notices(recipe), sep="\n")
        return
    print(f"starting {models}", flush=True)
    if recipe.open and not recipe.keys and not is_loopback(recipe.host):
        print(f"warning: whoever reaches {recipe.host} port {recipe.port} may ask: no keys are given", file=sys.stderr)
    with without_ray_threads():
        _serve_until_interrupted(recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    return cli.main(StartRecipe, run, name="serve_apps", prog="wm serve", description=__doc__ or "", argv=argv)


def _serve_until_interrupted(recipe: StartRecipe) -> None:
    interrupts = Interrupts()
    is_serving = False
    try:
        # A supervisor may give up a server that still loads: what Ray has started by then is ended too.
        if is_toy(start(recipe, interrupts)):
            print(TOY_NOTICE)
        interrupts.install()  # serve sets handlers too
        url = _url(recipe.host, recipe.port)
        if recipe.direct_port is not None:
            print(f"without Ray's proxy: {_url(recipe.host, recipe.direct_port)}/v1")
        print(f"open {url}/ (API: {url}/v1, reference: {url}/docs). Ctrl-C stops it.", flush=True)
        is_serving = True
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        # Whoever is impatient and asks again does not break off what is ending already: half a session would be left.
        interrupts.ignore()
        stop()
    if not is_serving:
        sys.exit(INTERRUPTED)


def _url(host: str, port: int) -> str:
    """Return an address of the server that a browser on this machine can open."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _connect(recipe: StartRecipe, port_error: InputError | None) -> None:
    # Ray's processes inherit the environment: it is set before any of them starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(PROXY_VARIABLE, IMPORT_PATH)
    for name in ("ray.serve", "ray._private.authentication.authentication_token_setup"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        if port_error is not None:
            raise port_error
        if recipe.direct_port is not None:
            raise InputError(f"direct_port = {recipe.direct_port}: Ray runs here already, and {NEEDS_OWN_SESSION}")
        return
    from ray._private import ray_constants
    from ray._private.node import Node

    if _joins_cluster():
        with joined_session(ray_constants, os.environ["RAY_ADDRESS"]):
            ray.init()
        if port_error is not None:
            check_takeover(APPLICATION, recipe.port, port_error)
            print(
                f"{APPLICATION} runs there, and the wm serve that started it is gone: this one replaces it", flush=True
            )
        return
    # Replicas wait more than they compute: more of them than the machine has cores may run.
    with private_session(ray_constants) as private, few_processes(Node), session_settings(recipe.direct_port):
        ray.init(
            "local",
            **private,
            num_cpus=max(8, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


if __name__ == "__main__":
    sys.exit(main())
