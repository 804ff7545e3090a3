"""docs/command-line.md is the help of the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "write_command_line"


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    loader = SourceFileLoader(SCRIPT.name, str(SCRIPT))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_page_is_current(writer: ModuleType):
    assert writer.page() == writer.PAGE.read_text(encoding="utf-8"), "run .venv/bin/python scripts/write_command_line"


def test_help_does_not_depend_on_the_terminal(writer: ModuleType, monkeypatch: pytest.MonkeyPatch):
    before = writer.help_of("search", "--help")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert writer.help_of("search", "--help") == before


def test_python_m_dualfuse_prints_the_same_help(writer: ModuleType):
    done = subprocess.run(
        [sys.executable, "-m", "dualfuse", "search", "--help"],
        env=os.environ | writer.SURROUNDINGS | {"PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=60,
    )
    lines = "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip()
    assert lines == writer.help_of("search", "--help")
