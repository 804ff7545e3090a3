"""Typed flags from functions and dataclasses, and the help that all commands share."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import os
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro.conf import Positional, arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from dualfuse.cli.console import echo
from dualfuse.errors import DualfuseError

Result = TypeVar("Result")
Options = TypeVar("Options")

Model = Annotated[
    Positional[str],
    arg(
        metavar="MODEL",
        help="model folder such as runs/demo/starter/best, run, checkpoint of a run or of another library, or name on "
        "the hub",
    ),
]
Force = Annotated[bool, arg(help="replace existing files, which are refused otherwise")]
Flags = Annotated[Options, arg(name="")]
"""A dataclass whose fields are flags of the command, without a prefix."""


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot classification."""

    zero_shot: Annotated[str, arg(metavar="NAMES")] = ""
    """zero-shot classification: class names as a file with one name per line, as a folder of shards that prepare wrote
    with --label folder, or as a list such as "cat, dog"; empty: off"""
    templates: Annotated[str, arg(metavar="FILE")] = ""
    """with --zero-shot: file with one sentence per line, {} standing for the name; clip: eight templates of CLIP;
    empty: 'a photo of a {}.'"""


COMMON = """\
options of every command:
  --import PACKAGE  load the models, tasks, towers, formats and stores of a Python package first; may be repeated
  --debug           show the traceback of any error"""


def split_common_options(words: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Return the values of --import, whether there is --debug, and the other words in their order."""
    imports: list[str] = []
    others: list[str] = []
    remaining = iter(words)
    for word in remaining:
        flag, _, value = word.partition("=")
        if flag == "--import":
            imports.append(value or next(remaining, ""))
        elif word != "--debug":
            others.append(word)
    return imports, "--debug" in words, others


def parse(
    target: Callable[..., Result], words: Sequence[str], *, prog: str, examples: str, **options: Any
) -> Result:  # Any: what tyro.cli takes
    """Call ``target``, a function or class, with the values of typed flags; the help ends with ``examples``.

    Raises ``DualfuseError`` for flags with an old name; other invalid flags end the program with an explanation.
    """
    errors = io.StringIO()
    try:
        with redirect_stderr(errors):
            return tyro.cli(target, args=list(words), prog=prog, registry=_documented(), **options)
    except SystemExit as end:
        if not end.code:  # after --help
            echo(f"\n{help_end(examples)}")
        else:
            _refuse_old_flags(words)
            echo(errors.getvalue().rstrip("\n"), to_stderr=True)
        raise


def deferred(function: Callable[..., Result]) -> Callable[..., Callable[[], Result]]:
    """Return a function of the same parameters that returns a call instead of making it."""

    @functools.wraps(function)
    def bind(*arguments: Any, **options: Any) -> Callable[[], Result]:  # Any: what the function takes
        return functools.partial(function, *arguments, **options)

    return bind


def _refuse_old_flags(words: Sequence[str]) -> None:
    from dualfuse.upgrade import new_flag

    for word, following in pairwise([*words, ""]):
        flag, _, value = word.partition("=")
        if flag.startswith("--") and (new := new_flag(flag, value or following)):
            raise DualfuseError(f"{flag} is now {new}")


def check_drawing(path: Path, data: str | Path = "") -> None:
    """Raise ``DualfuseError`` unless ``path`` can be an image and lies outside of the folder ``data``, if there is one.

    Inside it, the drawing would be one of the images the next time.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DualfuseError(f"--save-image {path}: the file name must end in .png or .jpg")
    if os.path.isdir(data) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(data)):
        raise DualfuseError(f"--save-image {path} would become one of the images in {data}; give a path outside of it")


def check_new(*paths: Path | None, force: bool) -> None:
    """Raise ``DualfuseError`` if a file that a command would write exists and ``force`` is not set."""
    for path in filter(None, paths):
        if path.is_dir():
            raise DualfuseError(f"{path} is a folder; give the name of a file")
        if path.exists() and not force:
            raise DualfuseError(f"{path} exists and would be replaced; give another name, or --force")


def help_end(examples: str) -> str:
    """Return the last lines of a help text."""
    return f"{COMMON}\n\nexamples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())


def _documented() -> ConstructorRegistry:
    """Return a registry for help texts without the line breaks of the docstrings."""
    registry = ConstructorRegistry()
    registry.struct_rule(_dataclass_fields)
    return registry


def _dataclass_fields(info: StructTypeInfo) -> StructConstructorSpec | None:
    if not is_dataclass(info.type):
        return None
    docs, types = _field_docs(info.type), get_type_hints(info.type, include_extras=True)
    specs: list[StructFieldSpec] = []
    for each in fields(info.type):
        value = getattr(info.default, each.name, _initial(each))
        kind = type(value) if isinstance(types[each.name], TypeVar) else types[each.name]
        specs.append(StructFieldSpec(each.name, kind, value, helptext=docs.get(each.name)))
    return StructConstructorSpec(instantiate=info.type, fields=tuple(specs))


@functools.cache  # finding the source of a class parses all of its file
def _field_docs(kind: type) -> dict[str, str]:
    """Return the docstring of each field of a class and its bases, in one line."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        with suppress(OSError, TypeError):  # a class without source code
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            for statement, following in pairwise(definition.body if isinstance(definition, ast.ClassDef) else ()):
                match statement, following:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        docs[name] = " ".join(text.replace("``", "").split())
                    case _:
                        pass
    return docs


def _initial(each: Field[Any]) -> Any:  # Any: of whatever type the field has
    if each.default_factory is not MISSING:
        return each.default_factory()
    return tyro.MISSING if each.default is MISSING else each.default
