"""A server that speaks enough of Kubernetes' API for kubectl: discovery, and objects that it keeps without a look.

No admission, no defaults, no controllers: what is tried is kubectl, and what we ask of it.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KINDS = {
    "/api/v1": ("v1", "pods", "Pod"),
    "/apis/batch/v1": ("batch/v1", "jobs", "Job"),
    "/apis/jobset.x-k8s.io/v1alpha2": ("jobset.x-k8s.io/v1alpha2", "jobsets", "JobSet"),
}
_VERBS = ["create", "delete", "get", "list"]


def _discovery(path: str) -> Any:
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [
            {"groupVersion": row[0], "version": row[0].split("/")[1]} for row in KINDS.values() if "/" in row[0]
        ]
        names = [
            {"name": row["groupVersion"].split("/")[0], "versions": [row], "preferredVersion": row} for row in versions
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": names}
    if path in KINDS:
        version, plural, kind = KINDS[path]
        row = {"name": plural, "singularName": plural[:-1], "namespaced": True, "kind": kind, "verbs": _VERBS}
        return {"kind": "APIResourceList", "groupVersion": version, "resources": [row]}
    return {"paths": {}} if path == "/openapi/v3" else None


class _Handler(BaseHTTPRequestHandler):
    objects: dict[str, dict[str, Any]]

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _answer(self, code: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, code: int, reason: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
        self._answer(code, status | {"message": f"{self.path}: {reason}"})

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/openapi/v2":
            self._answer(200, b"")  # an empty document in protobuf: no schema of anything
        elif path.endswith("/log"):
            self._answer(200, b"a line of the trainer\n")
        elif (found := _discovery(path)) is not None:
            self._answer(200, found)
        elif path in self.objects:
            self._answer(200, self.objects[path])
        elif row := next((row for root, row in KINDS.items() if path.startswith(root) and path.endswith(row[1])), None):
            items = [item for place, item in self.objects.items() if place.startswith(f"{path}/")]
            self._answer(200, {"kind": f"{row[2]}List", "apiVersion": row[0], "metadata": {}, "items": items})
        else:
            self._refuse(404, "NotFound")

    def do_POST(self) -> None:
        item = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        place = f"{urlsplit(self.path).path}/{item['metadata']['name']}"
        if place in self.objects:
            self._refuse(409, "AlreadyExists")
            return
        self.objects[place] = item
        self._answer(201, item)

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        item = self.objects.pop(urlsplit(self.path).path, None)
        if item is None:
            self._refuse(404, "NotFound")
        else:
            self._answer(200, item)


@contextlib.contextmanager
def serve(objects: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The server's address, while it runs; `objects` by their path, seen and changed by it."""
    handler = type("Handler", (_Handler,), {"objects": objects})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
