"""Warnings of libraries are silent inside the block, and heard after it."""

from __future__ import annotations

import logging
import warnings

import pytest

from codetr_cli.export.quiet import without_warnings


def test_warnings_are_silent_inside_and_errors_are_not(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("some_library.part")
    with without_warnings("some_library"):
        warnings.warn("for developers", stacklevel=1)  # an error of pytest elsewhere
        logger.warning("skipped a step")
        logger.error("failed")
    logger.warning("heard again")
    assert [record.message for record in caplog.records] == ["failed", "heard again"]
