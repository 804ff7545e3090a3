"""``dualfuse recipes``."""

from __future__ import annotations

from dualfuse.cli.console import echo

EXAMPLES = """
dualfuse recipes
dualfuse train ten-seconds --help
"""


def run() -> None:
    """List the recipes that train knows by name."""
    from dualfuse import recipes

    width = max(map(len, recipes.NAMES))
    for name in recipes.NAMES:
        echo(f"{name:{width}}  {recipes.summary(name)}")
