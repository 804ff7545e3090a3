"""The command line: finds the command, runs it, and turns a user's mistake into a sentence."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

import tyro

from dualfuse import __version__
from dualfuse.cli.commands import COMMANDS, train
from dualfuse.io import is_disk_full


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and gives the exit status; a user's mistake ends in a sentence, not in a traceback."""
    name, rest = _command(sys.argv[1:] if arguments is None else arguments)
    try:
        if name == "train":  # its flags depend on the recipe
            train(rest)
        else:
            tyro.cli(COMMANDS[name], args=rest, prog=f"dualfuse {name}")
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)  # reason for getattr: only a run says which signal it was
    except (ValueError, OSError, ImportError) as error:
        room = "; make room, then give the same command again" if is_disk_full(error) else ""
        print(f"dualfuse {name}: {error}{room}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        print(
            f"dualfuse {name}: a loader process has died: {error} Most often memory ran out: give fewer --data.num-workers "
            "(train) or --num-workers, then the same command again",
            file=sys.stderr,
        )
        return 1
    return 0


def _command(arguments: Sequence[str]) -> tuple[str, list[str]]:
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
