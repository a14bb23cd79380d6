"""What a server allows: addresses, keys and limits, checked once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from codetr_cli.errors import ConfigError, shown

MEGABYTE = 1_000_000
MAX_HEAD_BYTES = 32 * 1024
"""Of the first line and the headers of a request."""
MAX_CONNECTIONS = 512
"""Connections at the same time, of one process."""
HEAD_S = 10.0
"""For a client to send the first line and the headers, and for what follows of a request that was refused."""
KEEP_ALIVE_S = 30
"""How long a connection without a request stays open."""
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable that prometheus_client reads when it is imported: where processes share their numbers."""
MAX_FIELDS = 32
"""Fields of a form that are not images."""
MAX_FIELD_BYTES = 100_000
MAX_DETS = 10_000
SHORT_KEY = 16
"""Characters of a key that can be guessed sooner or later."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server answers.

    Attributes:
        host: address to listen on.
        port: to listen on; 0: one that is free.
        api_key: that every request for detections needs; None: none.
        cors_origins: origins of pages in browsers that may ask; "*" is every one.
        batch: images that the network sees at once; None: chosen for the device.
        max_wait_ms: how long an image waits for others of its batch.
        queue: images that are accepted and not answered yet, at most.
        max_images: of one request.
        max_pixels: of one image, height times width.
        max_body: bytes of one request.
        max_tiles: of one image.
        timeout_s: from the last byte of a request to its answer.
        read_timeout_s: for a client to send a request.
        log_requests: log a line for each request.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    cors_origins: tuple[str, ...] = ()
    batch: int | None = None
    max_wait_ms: float = 10.0
    queue: int = 32
    max_images: int = 16
    max_pixels: int = 50_000_000
    max_body: int = 32 * MEGABYTE
    max_tiles: int = 64
    timeout_s: float = 60.0
    read_timeout_s: float = 30.0
    log_requests: bool = False

    def __post_init__(self) -> None:
        if self.max_images > self.queue:
            raise ConfigError(
                f"--max-images {self.max_images} is more than --queue {self.queue}: such a request would never be "
                "accepted. Lower the first or raise the second"
            )
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ConfigError(
                "--api-key is empty or has characters that no header can have: use ASCII letters and digits"
            )
        if self.api_key is not None and self.api_key != self.api_key.strip():
            raise ConfigError("--api-key begins or ends with a space, which headers lose: remove it")
        for origin in self.cors_origins:
            _check_origin(origin)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def url_host(self) -> str:
        """The host in an address that a client on this machine can use."""
        if self.host in ("", "0.0.0.0"):
            return "127.0.0.1"
        if self.host == "::":
            return "[::1]"
        return f"[{self.host}]" if ":" in self.host else self.host

    def warnings(self) -> list[str]:
        """What the user should know of these options, sentences."""
        found = []
        if not self.is_local and self.api_key is None:
            found.append(
                f"--host {self.host} without --api-key: everybody who reaches port {self.port} of this machine can use "
                "the model and its processors. Give a key in CODETR_API_KEY, or listen on 127.0.0.1 behind a proxy "
                "that asks for one"
            )
        if not self.is_local and self.api_key is not None:
            found.append(
                f"--host {self.host}: requests and their key are not encrypted. Use a private network, or a proxy with "
                "TLS in front"
            )
        if self.api_key is not None and len(self.api_key) < SHORT_KEY:
            found.append(
                f"the API key has {len(self.api_key)} characters and can be guessed: use at least {SHORT_KEY}, e.g. "
                "from `openssl rand -hex 16`"
            )
        if "*" in self.cors_origins and self.api_key is None:
            found.append("--cors-origin '*' without --api-key: every web page that you open can use the model")
        return found


def _check_origin(origin: str) -> None:
    if origin == "*":
        return
    try:
        parts = urlsplit(origin)
        is_origin = parts.scheme in ("http", "https") and parts.netloc and origin == f"{parts.scheme}://{parts.netloc}"
    except ValueError:
        is_origin = False
    if not is_origin:
        raise ConfigError(
            f"--cors-origin {shown(origin)}: give the scheme, host and port of a page, as in https://example.org or "
            "http://localhost:3000, without a path; or '*'"
        )
