"""The packages that a server needs, which an installation without the extra `serve` does not have."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

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
    check_packages("serve", PACKAGES)


def check_packages(verb: str, packages: Mapping[str, str]) -> None:
    """Ensures that the packages of a verb's extra, which has its name, are installed.

    Args:
        verb: of the command.
        packages: module -> package.

    Raises:
        ResourceError: one is not; names the command that installs them.
    """
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ResourceError(
            f"codetr {verb} needs packages that are not installed ({', '.join(missing)}): "
            f"pip install 'codetr-cli[{verb}]'"
        )
