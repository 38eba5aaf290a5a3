"""Serve two models until Ctrl-C: ``wm serve fdm=DIR idm=DIR port=8000``, or the toy world's with ``wm serve`` alone.

Exit status: 0 once it served and was stopped, by Ctrl-C or SIGTERM; 130 where it was stopped before; 2 for bad input.
"""

import logging
import os
import re
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

    from serve_apps.calls import GRPC_VARIABLE
    from serve_apps.checks import check_models, is_toy
    from serve_apps.exposure import is_loopback
    from serve_apps.interrupts import Interrupts
    from serve_apps.middleware.proxy import IMPORT_PATH, has_middlewares, set_environment
    from serve_apps.model_kinds import list_notices
    from serve_apps.ports import check_port
    from serve_apps.quiet import quiet_end, without_ray_threads
    from serve_apps.recipe import ServeRecipe
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
RAY_SERVE_SETTINGS = {
    # Two threads beside a deployment's own are for code that blocks its event loop. Ours does not: models have a thread
    # of their own. Without the other two a request changes threads less often.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Calls between deployments go from process to process, not as Ray's tasks: a tenth less for one of a nano model.
    # Every replica has the port for them with or without this: serve_apps.loopback says who reaches it.
    GRPC_VARIABLE: "1",
    # Ray's bound for these calls is 4 MB: six images of 512 pixels a side, or an answer of ten. Clients are bounded by
    # max_body_bytes and the other limits of the recipe.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
}
OBJECT_STORE_BYTES = 256 * 2**20
PROXY_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
NO_MIDDLEWARES = (
    "warning: the proxy of this Ray session lacks the middleware of serve_apps: it obeys headers of any client, "
    f"and loses what a killed HTTP process was asked. Set {PROXY_VARIABLE}={IMPORT_PATH} on every node first"
)
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
        raise InputError(_why_not_running() or str(error)) from error
    # 3. A session that was there already may have been started without our middleware.
    if has_middlewares(recipe.host, recipe.port) is False:
        print(NO_MIDDLEWARES, file=sys.stderr)
    return codec_id


def _find_port_error(recipe: StartRecipe) -> InputError | None:
    """Check the port; of a cluster that is joined its Ray Serve may have it, which is known once it is joined."""
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


def _why_not_running() -> str | None:
    """Return one line that says what a replica met while it loaded its model, if it said anything.

    The message of an :class:`InputError` where it was one, else the last line of the last traceback.
    """
    from ray import serve

    deployments = serve.status().applications[APPLICATION].deployments.values()
    return find_reason("\n".join(deployment.message for deployment in deployments))


def find_reason(text: str) -> str | None:
    """Find the error in what Ray Serve says of deployments that did not start.

    Args:
        text: Messages, with tracebacks.

    Returns:
        One line; None where there is no error in them.
    """
    messages = re.findall(r"InputError: (.+)", text)
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*", text, re.MULTILINE)
    return messages[-1] if messages else errors[-1] if errors else None


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
        print(f"would serve {models} at {_url(recipe)}", *notices, *list_notices(recipe), sep="\n")
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
        print(
            f"open {_url(recipe)}/ (API: {_url(recipe)}/v1, reference: {_url(recipe)}/docs). Ctrl-C stops it.",
            flush=True,
        )
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


def _url(recipe: StartRecipe) -> str:
    """Return an address of the server that a browser on this machine can open."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(recipe.host, recipe.host)
    return f"http://[{host}]:{recipe.port}" if ":" in host else f"http://{host}:{recipe.port}"


def _connect(recipe: StartRecipe, port_error: InputError | None) -> None:
    # Ray's processes inherit the environment: it is set before any of them starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(PROXY_VARIABLE, IMPORT_PATH)
    for name, value in RAY_SERVE_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("ray.serve", "ray._private.authentication.authentication_token_setup"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        if port_error is not None:
            raise port_error
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
    with private_session(ray_constants) as private, few_processes(Node):
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
