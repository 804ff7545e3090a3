"""Find the tokenizer of a third-party checkpoint."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from dualfuse import hub
from dualfuse.convert.clip_tokenizer import BPE_FILE, bpe_file_tokenizer, clip_tokenizer, is_clip_vocabulary
from dualfuse.convert.sentencepiece import SPIECE, siglip_tokenizer
from dualfuse.data.text.tokenizer import TextTransform, roberta_tokenizer
from dualfuse.errors import DualfuseError

FILE, PARTS = "tokenizer.json", ("vocab.json", "merges.txt")
CLIP_TOKENIZER, SIGLIP_TOKENIZER = "openai/clip-vit-base-patch32", "google/siglip-base-patch16-224"
SIGLIP_2_TOKENIZER, GEMMA_VOCABULARY = "google/siglip2-base-patch16-224", 256_000
"""Hub names of the tokenizers of CLIP, SigLIP and SigLIP 2, and the vocabulary size of the last."""
ROBERTA = "roberta-base"
"""The tokenizer of the published BridgeTowers of both sizes, on the hub."""


BPE_ADVICE = (
    f", or OpenAI's {BPE_FILE}, or put that file beside the weights (the packages clip and open_clip_torch hold it); "
    "dualfuse convert takes --tokenizer, and its result needs none"
)


def find_tokenizer(tokenizer: str, folder: Path | None = None, default: str = "", *, beside: bool = False) -> str:
    """Return the path of a tokenizer.json: of ``tokenizer``, else in ``folder``, else of ``default`` on the hub.

    ``tokenizer`` is a file (a tokenizer.json, OpenAI's bpe_simple_vocab_16e6.txt.gz or a spiece.model), a folder or a
    name on the Hugging Face hub. With ``beside`` ``folder`` may also hold OpenAI's file. Without any
    the result is empty, which stands for the BERT tokens of this package. Raises ``DualfuseError`` if the default
    cannot be fetched.
    """
    if tokenizer:
        path = Path(tokenizer)
        if path.is_file():
            return _from_file(path)
        return _tokenizer_in(path if path.is_dir() else hub.download(tokenizer, hub.TOKENIZERS))
    if folder and _has_tokenizer(folder):
        return _tokenizer_in(folder)
    if folder and beside and (folder / BPE_FILE).is_file():
        return _from_file(folder / BPE_FILE)
    if not default:
        return ""
    try:
        return _tokenizer_in(hub.download(default, hub.TOKENIZERS))
    except (ValueError, ImportError, OSError) as error:
        raise DualfuseError(
            f"there is no tokenizer ({FILE}, or {' and '.join(PARTS)}) beside the weights, and {default} could not be "
            f"fetched from the hub ({error}); give one with --tokenizer PATH_OR_NAME"
            f"{BPE_ADVICE if default == CLIP_TOKENIZER else ''}"
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
    if not all((folder / part).is_file() for part in PARTS) and (folder / SPIECE).is_file():
        return _from_file(folder / SPIECE)
    make = clip_tokenizer if is_clip_vocabulary(folder / PARTS[0]) else roberta_tokenizer
    return _stored(make(*(folder / part for part in PARTS)))


def _has_tokenizer(folder: Path) -> bool:
    has = {name: (folder / name).is_file() for name in (FILE, *PARTS, SPIECE)}
    return has[FILE] or has[SPIECE] or all(has[part] for part in PARTS)


def _from_file(path: Path) -> str:
    """Return the path of a tokenizer.json with the content of a file."""
    if path.suffix == ".model":
        return _stored(siglip_tokenizer(path))
    return _stored(bpe_file_tokenizer(path)) if path.suffix in (".gz", ".txt") else str(path)


def _stored(tokenizer: Tokenizer) -> str:
    temporary = Path(tempfile.mkdtemp(prefix="dualfuse-tokenizer-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)  # the recipe reads it until then
    tokenizer.save(str(temporary / FILE))
    return str(temporary / FILE)
