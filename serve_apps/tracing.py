"""Trace requests with OpenTelemetry: spans of a request's stages, and where all spans are sent.

Ray Serve traces by itself once it is given :func:`build_processors`: a span for the proxy, for each hand-over to a
replica and for each call in one, of one trace across processes. The stages of :mod:`serve_apps.metrics` are spans below
those. What is sent, and where to, is said by OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, …).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry import trace

from wm.errors import InputError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

IMPORT_PATH = "serve_apps.tracing:build_processors"
PACKAGES = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
logger = logging.getLogger("ray.serve")


@contextmanager
def span(name: str) -> Iterator[None]:
    """Record a block as a span of the request that is traced here; nothing where none is.

    Args:
        name: Of the stage.
    """
    # Without a parent it would be a trace of its own, and cost something where nothing is traced.
    if not trace.get_current_span().is_recording():
        yield
        return
    with trace.get_tracer("wm").start_as_current_span(name):
        yield


def build_processors() -> "list[SpanProcessor]":
    """Build what Ray Serve sends the spans of a process to, as ``OTEL_TRACES_EXPORTER`` names it: ``otlp`` (the
    default), ``console`` (a file of Ray's session, ``logs/serve/spans``) or ``none``."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    os.environ.setdefault("OTEL_SERVICE_NAME", "wm")
    try:
        name = exporter_name()
        if name == "otlp":
            return [BatchSpanProcessor(_build_otlp())]
    except InputError as error:
        # A server must answer, whatever is wrong with where its spans go.
        logger.error("no spans are sent: %s", error)
        return []
    return [SimpleSpanProcessor(_build_file())] if name == "console" else []


def check_exporter() -> None:
    """Raise :class:`InputError` if spans could not be sent: an unknown exporter, or a package that is not installed."""
    if exporter_name() == "otlp":
        _build_otlp().shutdown()


def exporter_name() -> str:
    """Return the value of ``OTEL_TRACES_EXPORTER``.

    Raises:
        InputError: It is none of those known.
    """
    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name not in ("otlp", "console", "none"):
        raise InputError(f"OTEL_TRACES_EXPORTER = {name!r:.80}: expected otlp, console or none")
    return name


def _build_otlp() -> "SpanExporter":
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    variable = next((name for name in variables if os.environ.get(name)), variables[1])
    protocol = os.environ.get(variable) or "http/protobuf"
    if protocol not in PACKAGES:
        raise InputError(f"{variable} = {protocol!r:.80}: expected {' or '.join(PACKAGES)}")
    try:
        module = import_module(PACKAGES[protocol])
    except ImportError as error:
        package = f"opentelemetry-exporter-otlp-proto-{protocol.partition('/')[0]}"
        extra = " (`pip install 'wm[traces]'`)" if protocol != "grpc" else ""
        raise InputError(f"traces need the package {package}{extra}: {error}") from error
    # It reads the endpoint, headers, certificates and time limits from the environment.
    exporter: SpanExporter = module.OTLPSpanExporter()
    return exporter


def _build_file() -> "SpanExporter":
    """Write spans to a file of this process among Serve's logs, one JSON object a line."""
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter
    from ray.serve._private.logging_utils import get_serve_logs_dir

    folder = Path(get_serve_logs_dir()) / "spans"
    folder.mkdir(parents=True, exist_ok=True)
    out = (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8", buffering=1)
    return ConsoleSpanExporter(out=out, formatter=lambda ended: ended.to_json(indent=None) + "\n")
