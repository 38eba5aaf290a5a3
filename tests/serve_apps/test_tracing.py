"""Traces of requests: which stages are spans, below which one; and where spans are sent."""

import base64

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from serve_apps import tracing
from serve_apps.__main__ import main
from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import LocalHandle, local_app
from wm.errors import InputError
from wm.images import encode_png

URL = "data:image/png;base64," + base64.b64encode(encode_png(np.zeros((16, 16, 3), np.uint8))).decode()
EDIT = {"image": URL, "prompt": "move it", "seed": 1, "best_of": 2}


@pytest.fixture
def exporter(monkeypatch):
    """A provider of this test alone: the global one can be set only once in a process."""
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return memory


class TracedHandle(LocalHandle):
    """A handle whose calls are spans, as Ray Serve makes one for each call in a replica."""

    def __getattr__(self, name):
        method = super().__getattr__(name)
        inner = method._method

        async def traced(*arguments):
            with trace.get_tracer("ray").start_as_current_span(f"{type(self.server).__name__} {name}"):
                result = inner(*arguments)
                return await result if hasattr(result, "__await__") else result

        method._method = traced
        return method


@pytest.fixture(scope="module")
def app(tiny_base):
    app = local_app(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base)))
    graph = app.state.graph
    graph.fdm = TracedHandle(graph.fdm.server)
    graph.fdm.server._idm = TracedHandle(graph.idm.server)
    return app


def names_above(spans, span):
    """Names from the root to a span."""
    parents = {entry.context.span_id: entry for entry in spans}
    names = [span.name]
    while span.parent is not None:
        span = parents[span.parent.span_id]
        names.insert(0, span.name)
    return names


def test_one_trace_from_ingress_to_sampler_to_verifier(app, exporter):
    async def in_a_span(scope, receive, send):
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        with trace.get_tracer("ray").start_as_current_span("Ingress"):
            await app(scope, receive, send)

    with TestClient(in_a_span) as http:
        assert http.post("/v1/images/edits", json=EDIT).status_code == 200
    spans = exporter.get_finished_spans()
    assert len({span.context.trace_id for span in spans}) == 1
    paths = {" > ".join(names_above(spans, span)) for span in spans}
    assert paths == {
        "Ingress",
        "Ingress > prepare",
        "Ingress > FDMServer predict",
        "Ingress > FDMServer predict > encode",
        "Ingress > FDMServer predict > sample",
        "Ingress > FDMServer predict > score",
        "Ingress > FDMServer predict > score > IDMServer score_candidates",
        "Ingress > FDMServer predict > decode",
        "Ingress > encode_image",
    }


def test_outside_a_trace_there_are_no_spans(app, exporter):
    with TestClient(app) as http, tracing.span("alone"):
        http.post("/v1/images/edits", json=EDIT)
    assert {span.name.partition(" ")[2] for span in exporter.get_finished_spans() if span.parent is None} <= {
        "predict",
        "describe",
    }
    assert "alone" not in {span.name for span in exporter.get_finished_spans()}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER = 'zipkin': expected otlp, console or none"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_PROTOCOL = 'http/json': expected http/protobuf or grpc",
        ),
    ],
)
def test_variables_that_say_nothing_known(monkeypatch, caplog, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        tracing.check_exporter()
    # In a server that runs they are a line in the log: it answers without traces.
    assert tracing.build_processors() == [] and message in caplog.text


def test_a_missing_package_is_named_before_anything_starts(monkeypatch, capsys):
    monkeypatch.setattr(tracing, "PACKAGES", {"http/protobuf": "no_such_exporter"})
    assert main(["traces=1", "--dry-run"]) == 2
    message = "traces need the package opentelemetry-exporter-otlp-proto-http (`pip install 'wm[traces]'`)"
    assert message in capsys.readouterr().err


def test_no_exporter_where_none_is_wanted(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    tracing.check_exporter()
    assert tracing.build_processors() == []
