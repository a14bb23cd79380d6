"""Post-processing with the default settings."""

from __future__ import annotations

from typing import Any

from codetr_cli.config.schema import TestConfig
from codetr_cli.models.build import build_postprocess
from codetr_cli.models.postprocess import PostProcess


def post_process(**options: Any) -> PostProcess:
    """Post-processing of `[test]` settings.

    Args:
        options: settings that differ from the defaults.
    """
    return build_postprocess(TestConfig(**options))
