"""URLs of weights: which are accepted, what of them is a secret, and the local names of their files.

Credentials in a URL, `user:password@` or values after `?`, are used for requests to its server. They are not printed
and not written to files.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import SplitResult, quote, unquote, urlsplit

from codetr_cli.config.overrides import replace_settings
from codetr_cli.config.schema import Settings
from codetr_cli.errors import ConfigError

MAX_URL = 8_000
MAX_NAME_BYTES = 150
"""Of a local name: names of temporary files and conversions are made of it, and file systems allow 255."""
# Characters of a URL that are not escaped; spaces and characters beyond ASCII are.
URL_SAFE = ":/?#[]@!$&'()*+,;=%~"
# Values after `?` that are no secrets.
_PUBLIC = re.compile(r"true|false|download|\d{1,2}|")
_HIDDEN = "***"
_LABEL = re.compile(r"[\w-]+", re.ASCII)
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(%[\w.~-]+)?", re.ASCII)
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # names of devices on Windows


@dataclass(frozen=True)
class Address:
    """A URL as it is requested.

    Args:
        url: http or https, without user and password.
        origin: scheme, host and port, to which alone the credentials are sent.
        authorization: value of the HTTP header, made of user and password; None without.
    """

    url: str = field(repr=False)
    origin: tuple[str, str, int]
    authorization: str | None = field(repr=False)

    @property
    def is_encrypted(self) -> bool:
        """Whether it is an https URL."""
        return self.origin[0] == "https"

    @property
    def file_name(self) -> str:
        """The last part of its path; may be empty."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name


def is_url(text: str) -> bool:
    """Whether a text is a URL and not a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text) is not None


def parse_url(url: str) -> Address:
    """The address of an http or https URL.

    Raises:
        ConfigError: another scheme, no host, or not a URL at all.
    """
    if len(url) > MAX_URL:
        raise ConfigError(f"{shown_url(url[:100])}... is not a valid URL: it has {len(url):,} characters")
    try:
        parts = urlsplit(url)
        host, port = _host(parts.hostname or ""), parts.port
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError as error:
        reason = "it has a wrong port or host" if "port" in str(error).lower() else _without_text(error)
        raise ConfigError(f"{shown_url(url)} is not a valid URL: {reason}") from None
    scheme = parts.scheme
    if scheme not in ("http", "https") or not host:
        raise ConfigError(f"{shown_url(url)} cannot be downloaded: the URL must start with https:// or http://")
    if any(len(label) > 63 for label in host.split(".")) or len(host) > 253:
        raise ConfigError(f"{shown_url(url)} is not a valid URL: no host has such a long name")
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    authorization = None
    if parts.username is not None:
        authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
    clean = quote(parts._replace(netloc=place, path=parts.path or "/").geturl(), safe=URL_SAFE)
    return Address(clean, (scheme, host, port or (443 if scheme == "https" else 80)), authorization)


def _host(text: str) -> str:
    """The name of a host as it is looked up, or an address; `urllib` decodes what is escaped in it, too.

    Raises:
        UnicodeError: it is no name of a host.
    """
    if ":" in text:  # an IPv6 address, which urlsplit has checked
        if not _ADDRESS.fullmatch(text):
            raise UnicodeError
        return text
    host = unquote(text, errors="strict")
    host = host if host.isascii() else host.encode("idna").decode("ascii")
    if host and not all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split(".")):
        raise UnicodeError
    return host.lower()


def shown_url(url: str) -> str:
    """A URL for messages and files: without user, password and fragment; values after `?` are hidden."""
    try:
        parts = urlsplit(url)
        place = parts.netloc.rpartition("@")
        _ = parts.port
    except ValueError:  # perhaps a password with a character that should be escaped
        scheme, _, rest = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")
        return f"{scheme}://{_HIDDEN}@{rest.rpartition('@')[2]}" if "@" in rest else f"{scheme}://{rest}"
    query = "&".join(_shown_value(word) for word in parts.query.split("&")) if parts.query else ""
    netloc = f"{_HIDDEN}@{place[2]}" if place[1] else place[2]
    shown = SplitResult(parts.scheme, netloc, parts.path, query, "").geturl()
    return quote(shown, safe=URL_SAFE)


def has_secrets(text: str) -> bool:
    """Whether a text is a URL of which `shown_url` hides something."""
    return is_url(text) and _HIDDEN in shown_url(text)


def public_settings(settings: Settings) -> Settings:
    """Settings for files that others may read: URLs in them are those of `shown_url`."""
    values = {
        "train.backbone_weights": settings.train.backbone_weights,
        "source.url": settings.source.url,
        "source.page": settings.source.page,
    }
    hidden = {key: shown_url(value) for key, value in values.items() if value and has_secrets(value)}
    return replace_settings(settings, hidden) if hidden else settings


def local_name(name: str) -> str:
    """A name for a file below a folder of ours: visible, not too long, and allowed on every system."""
    name = re.split(r"[/\\]", name)[-1]
    name = "".join("_" if char in '<>:"|?*' or not char.isprintable() else char for char in name).strip(" .")
    if _RESERVED.fullmatch(name):
        name = f"_{name}"
    suffix = PurePosixPath(name).suffix if len(PurePosixPath(name).suffix) <= 16 else ""
    stem = name.removesuffix(suffix).encode(errors="replace")[: MAX_NAME_BYTES - len(suffix.encode(errors="replace"))]
    return (stem.decode(errors="ignore") + suffix) or "weights"


def _shown_value(word: str) -> str:
    name, separator, value = word.partition("=")
    if not separator:
        return name if _PUBLIC.fullmatch(name) else _HIDDEN
    return word if _PUBLIC.fullmatch(value) else f"{name}={_HIDDEN}"


def _without_text(error: ValueError) -> str:
    """The kind of an error whose message may repeat a part of the URL."""
    return "its host is not a name" if isinstance(error, UnicodeError) else "it cannot be split into host and path"
