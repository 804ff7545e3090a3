"""Third-party packages: their models, tasks, towers, formats and stores work in every command once imported."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from dualfuse.config import trust_module
from dualfuse.errors import DualfuseError

GROUP = "dualfuse.plugins"
"""The entry point group of installed packages that are imported without a flag."""

logger = logging.getLogger(__name__)

_sources: dict[str, bytes] = {}
"""What each module that was imported from a file was compiled from."""


def load(names: Sequence[str] = ()) -> None:
    """Import plug-ins, so that model folders may name their classes.

    Each of ``names`` is a package, a module or a path/file.py; the packages of the entry point group
    ``dualfuse.plugins`` are always imported. Raises ``DualfuseError`` for a name that cannot be imported; an entry
    point that cannot is logged.
    """
    for point in entry_points(group=GROUP):
        try:
            load_module(point.module)
        except DualfuseError as error:
            logger.warning("entry point %s of %s: %s", point.name, GROUP, error)
    for name in names:
        load_module(name)


def find(address: str) -> Any:  # Any: whatever a plug-in defines
    """Return what a plug-in defines, by "module:name" or "path/file.py:name"; raises ``DualfuseError`` if absent."""
    module_name, _, name = address.rpartition(":")
    if not module_name:
        raise DualfuseError(f"{address!r} names nothing; give MODULE:NAME or path/file.py:NAME")
    module = load_module(module_name)
    if not hasattr(module, name):
        raise DualfuseError(f"{module_name} has no {name!r}")
    return getattr(module, name)


def load_module(name: str) -> ModuleType:
    """Import a module by its name or by the path of its file, and let model folders name its classes.

    A file is executed again if it has changed since. A file inside a package is imported as a module of that package,
    so that its classes are the same whichever way it is reached. Raises ``DualfuseError`` if it cannot be imported.
    """
    try:
        module = _import_file(Path(name).resolve()) if name.endswith(".py") else _import_name(name)
    except DualfuseError:
        raise
    except Exception as error:  # of the code of others
        raise DualfuseError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    trust_module(module.__name__.partition(".")[0])
    return module


def _import_name(name: str) -> ModuleType:
    package = name.partition(".")[0]
    if package not in sys.modules and any(Path(package + ending).exists() for ending in ("", ".py")):
        _add_to_path(Path.cwd())  # the current folder, as python -m has it
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DualfuseError(f"{path} is not a file")
    name, root = _module_name(path)
    if "." in name:
        _add_to_path(root)
        importlib.import_module(name.rpartition(".")[0])
    source = path.read_bytes()
    loaded = sys.modules.get(name)
    if loaded:
        if getattr(loaded, "__file__", None) != str(path):  # reason for getattr: built-in modules lack it
            raise DualfuseError(f"{path} cannot be imported: a module is called {name} already; rename the file")
        if _sources.setdefault(name, source) == source:
            return loaded
    return _execute(name, path, source)


def _execute(name: str, path: Path, source: bytes) -> ModuleType:
    """Execute a file as the module ``name``; compiled here, as Python's cache misses edits within one second."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # as the file ends in .py
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # so that the classes of the file can be found when a checkpoint names them
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        if before:
            sys.modules[name] = before
        raise
    _sources[name] = source
    package, _, last = name.rpartition(".")
    if package:
        setattr(sys.modules[package], last, module)
    return module


def _module_name(path: Path) -> tuple[str, Path]:
    """Return the dotted name of a file within its package, and the folder that the package lies in."""
    parts, folder = [] if path.stem == "__init__" else [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), folder


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
