"""A stand-in for a Kubernetes API server: knows kinds, keeps what is created, and answers as kubectl needs it.

It checks nothing of an object; tests/cluster/test_manifests.py does, by the schemas.
"""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

KINDS = {
    "v1": {"ConfigMap": "configmaps", "Secret": "secrets", "PersistentVolumeClaim": "persistentvolumeclaims"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "ray.io/v1": {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"},
}


def _path(version):
    return f"/api/{version}" if "/" not in version else f"/apis/{version}"


def _describe(path):
    """Return the answer about kinds for a path; None for another path."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for version in KINDS:
            if "/" in version:
                entry = {"groupVersion": version, "version": version.partition("/")[2]}
                groups.append({"name": version.partition("/")[0], "versions": [entry], "preferredVersion": entry})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    for version, kinds in KINDS.items():
        if path == _path(version):
            resources = [
                {"name": name, "kind": kind, "namespaced": True, "verbs": ["get", "create", "patch", "delete"]}
                for kind, name in kinds.items()
            ]
            return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    return None


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _answer(self, body, status=200):
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def do_GET(self):
        path = self.path.partition("?")[0]
        body = _describe(path) or self.server.objects.get(path)
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        self._answer(body or missing, 200 if body else 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.objects[f"{self.path.partition('?')[0]}/{body['metadata']['name']}"] = body
        self._answer(body, 201)

    def do_DELETE(self):
        body = self.server.objects.pop(self.path.partition("?")[0], None)
        self._answer(body or {"kind": "Status", "code": 404}, 200 if body else 404)


@contextmanager
def kubernetes_server():
    """Serve on loopback; yield address and the objects by path."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.objects = {}
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
