"""Licenses of runtime dependencies, the bill of materials, and reproducible wheels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PERMISSIVE = re.compile(r"apache|bsd|mit\b|mit-cmu|hpnd|psf|python software|isc|zlib|mozilla|mpl|unlicense|cc0", re.I)
OTHER = re.compile(r"proprietary|(?<!l)gpl|commercial|non-?commercial", re.I)


def bill() -> dict[str, dict]:
    output = subprocess.run([sys.executable, ROOT / "scripts" / "sbom"], check=True, capture_output=True).stdout
    bom = json.loads(output)
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.5")
    return {each["name"]: each for each in bom["components"]}


def requirements(name: str, done: set[str]) -> set[str]:
    """Return the names of a package and of all that it needs without extras."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in done:
        return done
    try:
        needed = distribution(name).requires or []
    except PackageNotFoundError:
        return done
    done.add(name)
    for line in needed:
        if "extra ==" not in line:
            requirements(re.split(r"[ ;<>=!~\[(]", line)[0], done)
    return done


def test_licenses_of_runtime_dependencies_are_permissive() -> None:
    listed, runtime = bill(), set[str]()
    for name in ("torch", "numpy", "pillow", "tokenizers", "safetensors", "tyro", "rich"):
        requirements(name, runtime)
    assert {"torch", "pillow", "tokenizers"} <= runtime
    licenses = {name: listed[name]["licenses"][0]["license"]["name"] for name in runtime}
    drivers = ("nvidia-", "cuda-", "triton")  # of torch's CUDA builds, under NVIDIA's terms
    ours = {name: text for name, text in licenses.items() if not name.startswith(drivers)}
    assert {name: text for name, text in ours.items() if OTHER.search(text) or not PERMISSIVE.search(text)} == {}


@pytest.mark.slow
def test_the_wheel_is_reproducible(tmp_path: Path) -> None:
    wheels = []
    ignore = shutil.ignore_patterns(".*", "shared", "build", "*.egg-info", "tests", "bench")
    for number in range(2):
        source, out = tmp_path / f"source{number}", tmp_path / f"out{number}"
        shutil.copytree(ROOT, source, ignore=ignore)
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source]
        subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"})
        [wheel] = out.glob("*.whl")
        wheels.append(wheel.read_bytes())
    assert wheels[0] == wheels[1]
