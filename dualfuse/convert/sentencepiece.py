"""SigLIP's tokenizer from its sentencepiece model, as transformers' SiglipTokenizer computes it."""

from __future__ import annotations

import importlib
import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dualfuse.data.text.tokenizer import library_errors
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.files import read_bounded

SPIECE = "spiece.model"
MAX_FILE = 64 << 20
UNIGRAM = 1
"""Value of model_type in the trainer_spec of a unigram model."""
END, UNKNOWN = "</s>", "<unk>"
PUNCTUATION = "".join(f"\\{character}" for character in string.punctuation)


def siglip_tokenizer(path: Path) -> Tokenizer:
    """Return SigLIP's tokenizer: lower case, punctuation removed, unigram tokens, end token.

    Raises DualfuseError for a file that is not a unigram model, ``MissingExtraError`` without the extra sentencepiece.
    """
    model = _parse(path)
    if model.trainer_spec.model_type != UNIGRAM:
        raise DualfuseError(f"{path} is not a unigram model of sentencepiece; SigLIP's is one")
    scores = [(piece.piece, piece.score) for piece in model.pieces]
    names = [name for name, _ in scores]
    if END not in names or UNKNOWN not in names:
        raise DualfuseError(f"{path} has no {END} or no {UNKNOWN}, so it is not SigLIP's model")
    with library_errors(f"{path} is not a usable model of sentencepiece"):
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=names.index(UNKNOWN), byte_fallback=False))
    steps: list[Any] = [normalizers.Lowercase(), normalizers.Replace(Regex(f"[{PUNCTUATION}]"), "")]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        steps += [normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, names.index(END))]
    )
    tokenizer.add_special_tokens([END, UNKNOWN])
    return tokenizer


def _parse(path: Path) -> Any:  # Any: a message of protobuf
    content = read_bounded(path, MAX_FILE)
    try:
        schema = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise MissingExtraError("tokenizers of sentencepiece", "sentencepiece") from error
    model = schema.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # of protobuf, which raises its own
        raise DualfuseError(f"{path} is not a model of sentencepiece: {error}") from error
    return model
