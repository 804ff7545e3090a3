"""How long it is looked for files that break a reader: seconds, the same ones every time; or minutes, new ones."""

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
    """One for all examples of a test; each writes its files anew."""
    return tmp_path
