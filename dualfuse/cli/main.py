"""The entry point: finds the command, runs it, and turns errors that a user can fix into messages."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

from dualfuse import __version__
from dualfuse.cli import (
    average,
    card,
    convert,
    demo,
    doctor,
    embed,
    evaluate,
    explain,
    export,
    measure,
    predict,
    prepare,
    recipes,
    report,
    search,
    serve,
    train,
    upload,
)
from dualfuse.cli.console import echo, log_to_stderr, show_traceback
from dualfuse.cli.parser import COMMON, deferred, parse, split_common_options
from dualfuse.errors import DualfuseError
from dualfuse.io import is_disk_full

COMMANDS: dict[str, ModuleType] = {
    "prepare": prepare,
    "doctor": doctor,
    "recipes": recipes,
    "measure": measure,
    "train": train,
    "evaluate": evaluate,
    "search": search,
    "embed": embed,
    "serve": serve,
    "predict": predict,
    "explain": explain,
    "convert": convert,
    "export": export,
    "average": average,
    "card": card,
    "upload": upload,
    "report": report,
    "demo": demo,
}
"""Every command and its module, with a function ``run`` and ``EXAMPLES``; torch is imported inside the functions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0: success; 1: none of many inputs could be used; 2: an error that the user can fix, as one message on stderr; 128
    plus the number of the signal: an interruption. Any other exception is a defect of dualfuse and is not caught.
    """
    if arguments is None:  # a process of its own
        sys.excepthook = show_traceback
    name, words = _command(sys.argv[1:] if arguments is None else arguments)
    imports, debug, words = split_common_options(words)
    with log_to_stderr():
        try:
            return _run(name, words, imports) or 0
        except KeyboardInterrupt as error:
            echo(f"interrupted: {error}" if str(error) else "interrupted", to_stderr=True)
            return 128 + getattr(error, "number", signal.SIGINT)  # reason for getattr: only a run says which signal
        except (DualfuseError, OSError, RuntimeError) as error:
            message = _message(error)
            if not message:
                raise
            if debug:
                show_traceback(type(error), error, error.__traceback__)
            echo(f"dualfuse {name}: {message}", to_stderr=True)
            return 2


def _run(name: str, words: list[str], imports: list[str]) -> int | None:
    """Run a command and return its status; None: 0."""
    from dualfuse import plugins

    if name in ("train", "measure"):  # whose flags depend on the recipe
        plugins.load(imports)
        return COMMANDS[name].run(words)
    call = parse(deferred(COMMANDS[name].run), words, prog=f"dualfuse {name}", examples=COMMANDS[name].EXAMPLES)
    plugins.load(imports)
    return call()


def _message(error: Exception) -> str:
    """Return the message for an error that the user can fix, and "" for any other."""
    if isinstance(error, DualfuseError):
        return str(error)
    if isinstance(error, OSError):
        message = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return f"{message}; free some disk space, then rerun the command" if is_disk_full(error) else message
    if str(error).startswith("DataLoader worker"):
        return f"a data loader process has died, most often for lack of memory; set a lower --num-workers: {error}"
    return ""


def _command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    summaries = {name: (module.run.__doc__ or "").splitlines()[0] for name, module in COMMANDS.items()}
    width = max(map(len, summaries))
    parser = argparse.ArgumentParser(
        prog="dualfuse",
        usage="dualfuse [--help] [--version] COMMAND ...",
        description="Train, evaluate and serve vision-language models whose single set of weights works as a\n"
        "dual encoder and as a fusion encoder.",
        epilog="commands, each with its own --help:\n"
        + "\n".join(f"  {name:{width}}  {summary}" for name, summary in summaries.items())
        + f"\n\n{COMMON}\n\nexamples:\n  dualfuse demo\n  dualfuse train ten-seconds\n  dualfuse search --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dualfuse {__version__}")
    parser.add_argument("command", choices=tuple(COMMANDS), metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    return parsed.command, parsed.arguments
