"""Importing is quick, and torch.distributed has one place (import-linter checks the layers, see pyproject.toml)."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dualfuse

PACKAGE = Path(dualfuse.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
COMMAND = Path(sys.executable).with_name("dualfuse")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def modules_loaded_by(*arguments: str | Path) -> set[str]:
    """Return every module that ``python ARGUMENTS`` imports, as the interpreter lists them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^import time:.*\| *(\S+)$", done.stderr, re.MULTILINE))


def test_every_module_can_be_imported():
    broken = {}
    for name in (module_name(path) for path in FILES if path.stem != "__main__"):
        try:
            importlib.import_module(name)
        except Exception as error:
            broken[name] = error
    assert broken == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-c", "import dualfuse"), "dualfuse"),
        (("-m", "dualfuse", "--help"), "dualfuse.cli.main"),
        ((COMMAND, "--help"), "dualfuse.cli.main"),
        ((COMMAND, "search", "--help"), "dualfuse.cli.search"),
    ],
    ids=["import dualfuse", "python -m dualfuse --help", "dualfuse --help", "dualfuse search --help"],
)
def test_help_does_not_import_torch(arguments: tuple[str | Path, ...], expected: str):
    loaded = modules_loaded_by(*arguments)
    assert expected in loaded
    assert "torch" not in loaded


def test_every_folder_is_a_package_that_import_linter_finds():
    folders = {path.parent for path in FILES}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def imports_distributed(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                imported = {name.name for name in names}
            case ast.ImportFrom(module="torch", names=names):
                imported = {f"torch.{name.name}" for name in names}
            case ast.ImportFrom(module=str(module)):
                imported = {module}
            case ast.Attribute(value=ast.Name(id="torch"), attr="distributed"):
                imported = {"torch.distributed"}
            case _:
                continue
        if any(name == "torch.distributed" or name.startswith("torch.distributed.") for name in imported):
            return True
    return False


def test_only_distributed_imports_torch_distributed():
    importing = {module_name(path) for path in FILES if imports_distributed(path)}
    assert importing and all(name.startswith("dualfuse.distributed.") for name in importing)


def test_every_public_name_loads_and_is_not_hidden_by_a_folder():
    assert {"Task", "TaskConfig", "VisionLanguageModel", "load", "train", "write_shards"} <= set(dualfuse.__all__)
    for name in dualfuse.__all__:
        assert callable(getattr(dualfuse, name)), name
        assert not (PACKAGE / name).is_dir(), name
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = dualfuse.nothing
