"""The packages that a server needs, which an installation without the extra `serve` does not have."""

from __future__ import annotations

import importlib.util

from codetr_cli.errors import ResourceError

PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
"""Module -> package. The other modules of this room import them; nothing else in codetr does."""


def check_installed() -> None:
    """Ensures that all packages of a server are installed.

    Raises:
        ResourceError: one is not; names the command that installs them.
    """
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ResourceError(
            f"codetr serve needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'codetr-cli[serve]'"
        )
