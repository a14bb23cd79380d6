"""A web server on this machine that serves one file well or badly, as a test asks."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What is served and how; `requests` collects the Range header of every request, None without one."""

    data: bytes
    url: str = ""
    ranges: bool = True
    etag: str | None = '"one"'
    status: int = 200
    content_type: str = "application/octet-stream"
    tell_length: bool = True
    cut_at: list[int] = field(default_factory=list)  # bytes after which the next answers end
    requests: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        served = self.server.served
        wanted = self.headers.get("Range")
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/weights.pth")
            self.end_headers()
            return
        served.requests.append(wanted)
        if served.status != 200:
            self.send_error(served.status)
            return
        start, status = 0, 200
        if wanted and served.ranges and self.headers.get("If-Range") in (None, served.etag):
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            if start >= len(served.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(served.data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        body = served.data[start:]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(served.data) - 1}/{len(served.data)}")
        if served.tell_length:
            self.send_header("Content-Length", str(len(body)))
        if served.etag:
            self.send_header("ETag", served.etag)
        self.send_header("Content-Type", served.content_type)
        self.end_headers()
        if served.cut_at:
            body = body[: served.cut_at.pop(0)]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def serve(data, **options):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.served = Served(data, **options)
    server.served.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
