"""A web server of some contents, which can fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serving(contents: dict[str, bytes], failures: list[int], ranges: bool = True) -> Iterator[str]:
    """The address of a server on this machine.

    Args:
        contents: by path.
        failures: status codes of the next answers; those after them are right.
        ranges: whether it sends parts of a content.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            content = contents.get(self.path.partition("?")[0])
            if failures or content is None:
                self.send_response(failures.pop(0) if failures else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            status, wanted = 200, self.headers.get("Range", "")
            if ranges and wanted.startswith("bytes="):
                first, _, last = wanted[6:].partition("-")
                content, status = content[int(first) : int(last or len(content)) + 1], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
