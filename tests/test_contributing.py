"""The tree in CONTRIBUTING.md names every file of the package, and none that is gone."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tree_paths() -> set[str]:
    tree = re.search(r"```text\n(dualfuse/\n.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert tree is not None
    paths, folders = set(), []
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders[depth:] = [name]
        paths.add("".join(folders))
    return {path for path in paths if path.startswith("dualfuse/")}


def test_the_tree_names_every_file():
    tree = tree_paths()
    as_a_whole = tuple(
        path for path in tree if path.endswith("/") and not any(path in other for other in tree - {path})
    )
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dualfuse").rglob("*.py")}
    unnamed = {path for path in files - tree if not path.endswith("__.py") and not path.startswith(as_a_whole)}
    gone = {path for path in tree if not (ROOT / path).exists()}
    assert (unnamed, gone) == (set(), set())
