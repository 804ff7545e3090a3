"""Hypothesis profiles: seconds with fixed examples by default, or minutes with new ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ANY = list(HealthCheck)
settings.register_profile(
    "seconds", derandomize=True, database=None, deadline=None, max_examples=12, suppress_health_check=ANY
)
settings.register_profile("minutes", deadline=None, max_examples=300, suppress_health_check=ANY, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "seconds"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return one folder for all examples of a test, which overwrite each other's files."""
    return tmp_path
