"""Which errors are the disk's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from codetr_cli.errors import ResourceError
from codetr_cli.runtime import disk_errors


def test_a_system_error_that_is_no_matter_of_the_disk_stays_what_it_is(tmp_path: Path):
    with pytest.raises(KeyError), disk_errors.writing(tmp_path):
        raise KeyError("x")


def test_what_safetensors_tells_of_a_disk_is_understood(tmp_path: Path):
    error = SafetensorError(f'Error while serializing: I/O error: Stale (os error {errno.ESTALE}) at path "x"')
    assert disk_errors.system_error(error).errno == errno.ESTALE  # type: ignore[union-attr]
    with pytest.raises(ResourceError, match=os.strerror(errno.ESTALE)), disk_errors.writing(tmp_path):
        raise error
