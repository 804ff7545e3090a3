"""Finds the tokenizer that belongs to a foreign checkpoint."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from dualfuse import hub
from dualfuse.data.text.tokenizer import TextTransform, roberta_tokenizer
from dualfuse.errors import DualfuseError

FILE, PARTS = "tokenizer.json", ("vocab.json", "merges.txt")
ROBERTA = {768: "roberta-base", 1024: "roberta-large"}
"""The tokenizers of published checkpoints, by the width of the text tower; both are the same."""


def find_tokenizer(given: str, folder: Path | None, default: str) -> str:
    """Return the path of a tokenizer.json: of what was ``given``, else of the source's own ``folder``.

    ``given`` is a file, a folder or a name on the Hugging Face hub. If there is neither, ``default`` is fetched from
    the hub; if that fails, ``DualfuseError`` says what to give.
    """
    if given:
        path = Path(given)
        return str(path) if path.is_file() else _inside(path if path.is_dir() else hub.download(given, hub.TOKENIZERS))
    if folder and ((folder / FILE).is_file() or all((folder / part).is_file() for part in PARTS)):
        return _inside(folder)
    try:
        return _inside(hub.download(default, hub.TOKENIZERS))
    except (ValueError, ImportError, OSError) as error:
        raise DualfuseError(
            f"there is no tokenizer ({FILE}, or {' and '.join(PARTS)}) beside the weights, and {default} could not be "
            f"fetched from the hub ({error}); give one with --tokenizer PATH_OR_NAME"
        ) from error


def check_tokenizer(tokenizer: TextTransform, vocabulary: int) -> None:
    """Refuse a tokenizer that gives ids for which a model has no row."""
    if tokenizer.vocab_size > vocabulary:
        raise DualfuseError(
            f"the tokenizer knows {tokenizer.vocab_size:,} tokens, the model only {vocabulary:,}; "
            "give the one it was trained with: --tokenizer PATH_OR_NAME"
        )


def _inside(folder: Path) -> str:
    if (folder / FILE).is_file():
        return str(folder / FILE)
    tokenizer = roberta_tokenizer(*(folder / part for part in PARTS))
    made = Path(tempfile.mkdtemp(prefix="dualfuse-tokenizer-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)  # texts are encoded from it until then
    tokenizer.save(str(made / FILE))
    return str(made / FILE)
