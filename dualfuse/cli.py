"""The command line: what can be done, in one list. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from dualfuse.data.prepare_options import PrepareOptions
    from dualfuse.engine.evaluate import Plan


def train(arguments: list[str]) -> None:
    """Train a recipe; every number of it is a typed flag."""
    from dualfuse import recipes
    from dualfuse.engine.train import train

    parser = argparse.ArgumentParser(
        prog="dualfuse train",
        description="Train a recipe. The same command goes on where a stopped run was.",
        epilog="dualfuse recipes lists the names; dualfuse train NAME --help lists every flag of that recipe.",
        add_help=not arguments or arguments[0].startswith("-"),
    )
    parser.add_argument("name", help="a listed name, path/file.py:function, or module:function")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    known, flags = parser.parse_known_args(arguments)
    chosen = recipes.override(recipes.find(known.name), flags, prog=f"dualfuse train {known.name} [--out DIR]")
    print(f"the model is in {train(chosen, known.out or Path('runs') / known.name.rpartition(':')[2])}")


def list_recipes() -> None:
    """List the recipes that train knows by name."""
    from dualfuse import recipes

    width = max(map(len, recipes.NAMES))
    for name in recipes.NAMES:
        print(f"{name:{width}}  {recipes.summary(name)}")


COMMANDS = {"train": train, "recipes": list_recipes}
"""Every command and the function that runs it; the first line of its docstring is its help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives the exit status; a user's mistake ends in a sentence, not in a traceback."""
    name, rest = _command(sys.argv[1:] if arguments is None else arguments)
    try:
        if name == "train":  # its flags depend on the recipe
            train(rest)
        else:
            import tyro

            tyro.cli(COMMANDS[name], args=rest, prog=f"dualfuse {name}")
    except KeyboardInterrupt as error:
        print(f"interrupted {error}".strip(), file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"dualfuse {name}: {error}", file=sys.stderr)
        return 1
    return 0


def _command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    from dualfuse import __version__

    summaries = {name: (function.__doc__ or "").splitlines()[0] for name, function in COMMANDS.items()}
    width = max(map(len, summaries))
    parser = argparse.ArgumentParser(
        prog="dualfuse",
        usage="dualfuse [--help] [--version] COMMAND ...",
        description="Vision-language models that work both ways: as a dual encoder and as a fusion encoder.",
        epilog="commands, each with its own --help:\n"
        + "\n".join(f"  {name:{width}}  {summary}" for name, summary in summaries.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dualfuse {__version__}")
    parser.add_argument("command", choices=tuple(COMMANDS), metavar="COMMAND", help="one of the list below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    return parsed.command, parsed.arguments


if __name__ == "__main__":
    sys.exit(main())
