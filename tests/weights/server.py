"""A web server on this machine that serves one file well or badly, as a test asks."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
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
        if served.etag and self.headers.get("If-None-Match") == served.etag:
            self.send_response(304)
            self.end_headers()
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


@contextmanager
def serve_raw(*scripts):
    """A server whose connections are handled by the scripts in turn, then by the last one again and again.

    A script is called with the connection and the text of the request; yields the URL and the list of all requests.
    """
    requests, open_connections = [], []

    def handle(number, connection):
        with connection, suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request and (piece := connection.recv(65536)):
                request += piece
            requests.append(request.decode("latin-1"))
            scripts[min(number, len(scripts) - 1)](connection, requests[-1])

    def accept():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_connections.append(connection)
                number = len(open_connections) - 1
                threading.Thread(target=handle, args=(number, connection), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/weights.pth", requests
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in open_connections:
                connection.close()


def answer(head, body=b""):
    """A script that sends a status line with headers, and a body."""

    def script(connection, request):
        connection.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)

    return script


def trickle(start, piece, pause_s=0.02):
    """A script that sends something, and then a piece of it now and then, for ever."""

    def script(connection, request):
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(pause_s)

    return script
