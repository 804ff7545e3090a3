"""``dualfuse recipes``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Force, check_new
from dualfuse.errors import DualfuseError

EXAMPLES = """
dualfuse recipes
dualfuse recipes vlmo-base-pairs
dualfuse recipes vlmo-nano-pairs --out mine.yaml
dualfuse train ten-seconds --help
"""


def run(
    name: Annotated[Positional[str], arg(metavar="NAME", help="recipe to show, in the forms that train takes")] = "",
    out: Annotated[
        Path | None, arg(metavar="FILE", help="write it to this .yaml or .json file, for train FILE")
    ] = None,
    force: Force = False,
) -> None:
    """List the recipes that train knows by name, or show one with all its values.

    A recipe is shown as YAML (needs the extra yaml), and written as YAML or JSON.
    """
    from dualfuse import recipes
    from dualfuse.recipes.files import recipe_text, write_recipe_file

    if not name:
        if out or force:
            raise DualfuseError("--out and --force are for one recipe; give its NAME")
        width = max(map(len, recipes.NAMES))
        for each in recipes.NAMES:
            echo(f"{each:{width}}  {recipes.summary(each)}")
        return
    found = recipes.find_recipe(name)
    if out is None:
        echo(recipe_text(found, as_yaml=True).rstrip("\n"))
        return
    check_new(out, force=force)
    write_recipe_file(found, out)
    echo(f"wrote {out}")
