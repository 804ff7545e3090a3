"""``dualfuse recipes``."""

from __future__ import annotations

EXAMPLES = """
dualfuse recipes
dualfuse train ten-seconds --help
"""


def run() -> None:
    """List the recipes that train knows by name."""
    from dualfuse import recipes

    width = max(map(len, recipes.NAMES))
    for name in recipes.NAMES:
        print(f"{name:{width}}  {recipes.summary(name)}")
