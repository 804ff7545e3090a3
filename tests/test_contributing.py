"""CONTRIBUTING.md: the reading path can be read, the tree names every folder, the layers are those that are checked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_reading_path_has_ten_files_and_the_stated_length():
    files = re.findall(r"\]\((dualfuse/\S+\.py)\)", PAGE.partition("## Architecture")[0])
    stated = re.search(r"about ([\d,]+) lines", PAGE)
    assert len(files) == 10 and stated
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert abs(lines - int(stated[1].replace(",", ""))) <= 200


def test_tree_names_every_folder_and_file_at_the_top():
    tree = re.search(r"```text\ndualfuse/\n(.*?)^tests/", PAGE, re.DOTALL | re.MULTILINE)
    assert tree is not None
    named = set(re.findall(r"(?<=[ \n])(\w+(?:\.py|/))(?=[ \n])", f" {tree[1]}"))
    package = ROOT / "dualfuse"
    there = {path.name for path in package.glob("*.py")} | {f"{path.parent.name}/" for path in package.glob("*/*.py")}
    assert there - {"__main__.py"} <= named
    inside = {f"{path.name}/" for path in package.rglob("*") if path.is_dir()}
    assert {name for name in named - inside if not (package / name).exists()} == set()


def test_layers_are_those_of_the_import_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    assert "\n".join(contract["layers"][1:]) in PAGE
