"""docs/serving.md: the commands of its unit and its Dockerfile parse, and the steps of the Dockerfile run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from dualfuse.cli import serve
from dualfuse.cli.parser import deferred, parse

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "serving.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    assert found
    return found[1]


def steps() -> list[str]:
    return [line.removeprefix("RUN ") for line in block("dockerfile").splitlines() if line.startswith("RUN ")]


def test_commands_of_unit_and_dockerfile_parse() -> None:
    unit = dict(line.partition("=")[::2] for line in block("ini").splitlines() if line.startswith("ExecStart"))
    command = next(line for line in block("dockerfile").splitlines() if line.startswith("CMD "))
    for words in (shlex.split(unit["ExecStart"])[1:], json.loads(command.removeprefix("CMD "))[1:]):
        assert words[0] == "serve"
        parse(deferred(serve.run), words[1:], prog="dualfuse serve", examples="")
    assert "--token-file" in unit["ExecStart"] and "--token-file" in command  # both listen on other addresses


@pytest.mark.slow
def test_steps_of_the_dockerfile_run(tmp_path: Path) -> None:
    """In an environment that has the packages of this one already, so that nothing large is loaded."""
    source = tmp_path / "src"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, (each.decode() for each in names)):
        if name.startswith(("dualfuse/", "pyproject", "constraints", "README", "LICENSE", "NOTICE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    venv.create(tmp_path / "venv", with_pip=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    script = "set -eu\n" + "\n".join(step.replace("/src", str(source)) for step in steps())
    path = f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin"
    ran = subprocess.run(
        ["sh", "-c", script], env={"PATH": path, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert sys.prefix != str(tmp_path / "venv") and (tmp_path / "venv" / "bin" / "dualfuse").exists()
