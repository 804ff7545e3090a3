"""Find the tokenizer of a third-party checkpoint."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from dualfuse import hub
from dualfuse.data.text.tokenizer import TextTransform, roberta_tokenizer
from dualfuse.errors import DualfuseError

FILE, PARTS = "tokenizer.json", ("vocab.json", "merges.txt")
ROBERTA = "roberta-base"
"""The tokenizer of the published BridgeTowers of both sizes, on the hub."""


def find_tokenizer(tokenizer: str, folder: Path | None = None, default: str = "") -> str:
    """Return the path of a tokenizer.json: of ``tokenizer``, else in ``folder``, else of ``default`` on the hub.

    ``tokenizer`` is a file, a folder or a name on the Hugging Face hub. Without any the result is empty, which stands
    for the BERT tokens of this package. Raises ``DualfuseError`` if the default cannot be fetched.
    """
    if tokenizer:
        path = Path(tokenizer)
        if path.is_file():
            return str(path)
        return _tokenizer_in(path if path.is_dir() else hub.download(tokenizer, hub.TOKENIZERS))
    if folder and ((folder / FILE).is_file() or all((folder / part).is_file() for part in PARTS)):
        return _tokenizer_in(folder)
    if not default:
        return ""
    try:
        return _tokenizer_in(hub.download(default, hub.TOKENIZERS))
    except (ValueError, ImportError, OSError) as error:
        raise DualfuseError(
            f"there is no tokenizer ({FILE}, or {' and '.join(PARTS)}) beside the weights, and {default} could not be "
            f"fetched from the hub ({error}); give one with --tokenizer PATH_OR_NAME"
        ) from error


def check_tokenizer(tokenizer: TextTransform, vocab_size: int) -> None:
    """Raise ``DualfuseError`` for a tokenizer with more tokens than the model."""
    if tokenizer.vocab_size > vocab_size:
        raise DualfuseError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model only {vocab_size:,}; "
            "give the one it was trained with: --tokenizer PATH_OR_NAME"
        )


def _tokenizer_in(folder: Path) -> str:
    if (folder / FILE).is_file():
        return str(folder / FILE)
    tokenizer = roberta_tokenizer(*(folder / part for part in PARTS))
    temporary = Path(tempfile.mkdtemp(prefix="dualfuse-tokenizer-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)  # the recipe reads it until then
    tokenizer.save(str(temporary / FILE))
    return str(temporary / FILE)
