"""What made a model: versions, code, command line, machine and environment."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from dualfuse.checksums import sha256
from dualfuse.config import IS, JSON, OWN
from dualfuse.files import read_json
from dualfuse.io import write_json

FILE = "provenance.json"
VARIABLES = re.compile(
    r"(OMP|MKL)_NUM_THREADS|(LOCAL_)?WORLD_SIZE|(CUDA|CUBLAS|NCCL|GLOO|PYTORCH|TORCH)_\w+|SLURM_JOB_ID"
)
"""Environment variables that change results or speed; none of them holds a secret."""


def provenance(recipe: JSON) -> dict[str, JSON]:
    """Return what is needed to repeat a run, beside its recipe, which is given as JSON; the same in all of a process.

    "code" and each entry of "plugins", the modules outside dualfuse that the recipe names, have the commit of a git
    checkout and whether files of it were changed.
    """
    modules = {name: sys.modules[name] for name in sorted(_modules(recipe)) if name in sys.modules}
    files = {name: Path(module.__file__) for name, module in modules.items() if module.__file__}
    plugins: dict[str, JSON] = {
        name: {"file": str(file), "sha256": sha256(file), **_git(file)}
        for name, file in files.items()
        if file.is_file()
    }
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "code": _git(Path(__file__)),
        "plugins": plugins,
        "command": [*sys.argv],
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "environment": {name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)},
    }


def record(out: Path, step: int, recipe: JSON) -> None:
    """Add a process that trains from ``step`` on to ``out``/provenance.json, a list with an entry per start."""
    path = out / FILE
    entries: list[JSON] = []
    if step and path.is_file():
        with suppress(ValueError):  # a damaged file is replaced
            content = read_json(path)
            entries = content if isinstance(content, list) else []
    write_json(path, [*entries, {"step": step, **provenance(recipe)}])


def _modules(data: JSON) -> set[str]:
    """Return the modules outside dualfuse whose classes a recipe names."""
    if isinstance(data, list):
        return {name for item in data for name in _modules(item)}
    if not isinstance(data, dict):
        return set()
    module = str(data.get(IS, OWN)).partition(":")[0]
    return _modules(list(data.values())) | ({module} if module.partition(".")[0] != OWN else set())


@cache
def _versions() -> dict[str, str]:
    """Return the versions of dualfuse and of the packages that it depends on, where they are installed."""
    from dualfuse import __version__

    versions = {OWN: __version__}
    try:
        requirements = metadata.requires(OWN) or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        requirements = ["torch", "numpy", "pillow", "tokenizers", "safetensors"]
    for requirement in requirements:
        match = re.match(r"[\w.-]+", requirement)
        is_tool = re.search(r"""extra == ["'](test|dev)""", requirement)
        if match and match[0] != OWN and not is_tool:
            try:
                versions[match[0]] = metadata.version(match[0])
            except metadata.PackageNotFoundError:  # an extra
                continue
    return versions


@cache
def _git(file: Path) -> dict[str, JSON]:
    """Return "commit" and "dirty" of the git checkout that tracks a file; empty if there is none, or no git."""

    def git(*command: str) -> str:
        full = ["git", "--no-optional-locks", "-C", str(file.parent), *command]
        return subprocess.run(full, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}
