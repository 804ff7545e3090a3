"""Tokenizers of BERT, RoBERTa, CLIP and SigLIP style, and the transform from a text to token ids."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dualfuse.errors import DualfuseError
from dualfuse.files import check_regular, read_bounded
from dualfuse.printable import brief

BERT_VOCABULARY = Path(__file__).parent / "bert_base_uncased" / "vocab.txt"
BERT_SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
ROBERTA_SPECIAL = ("<s>", "</s>", "<pad>", "<mask>")
CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>", "")
GEMMA_SPECIAL = ("", "<eos>", "<pad>", "<mask>")
SIGLIP_SPECIAL = ("", "</s>", "</s>", "")
STYLES = (BERT_SPECIAL, ROBERTA_SPECIAL, CLIP_SPECIAL, GEMMA_SPECIAL, SIGLIP_SPECIAL)
"""Start, end, padding and mask token by family of tokenizers, in the order in which they are tried; "": none."""
NONE = -1
"""Id of a special token that a tokenizer does not have."""
UNKNOWN = ("[UNK]", "<unk>")
CHARACTERS_PER_TOKEN = 50  # of a long text that are encoded first; words have about five
MAX_FILE = 64 << 20
"""Bytes of a tokenizer.json or vocab.json; the largest published ones have 33 MB."""
MAX_VOCABULARY = 4_000_000
MAX_GROWTH = 1000
"""Factor by which the normalization of a text may lengthen it."""
TEXT_STAGES = ("normalizer", "pre_tokenizer", "decoder")
RARE_CHARACTER = "\U0002ebe0"  # in hardly any vocabulary


@dataclass(frozen=True, eq=False)
class EncodedText:
    """One encoded text: token ``ids`` (T,) and the number of each token's word, ``word_ids`` (T,); both int64.

    Special tokens have word -1; ``truncated`` is true if the end of the text was cut off.
    """

    ids: np.ndarray
    word_ids: np.ndarray
    truncated: bool


@dataclass(frozen=True)
class TextTransform:
    """Transform from captions to token ids; small to pickle, because each process loads the tokenizer once."""

    length: int = 40
    """Maximum number of tokens, start and end tokens included; longer texts are truncated."""
    tokenizer: str = ""
    """Path of a tokenizer.json (of BERT, RoBERTa, CLIP, SigLIP); empty: the tokenizer of BERT base uncased."""

    def __post_init__(self) -> None:
        """Validate the length."""
        if self.length < 3:
            raise DualfuseError(f"text length is {self.length}; it must be 3 or more (start, one token, end)")

    @property
    def vocab_size(self) -> int:
        """Number of token ids: the size of the embedding table."""
        return load_tokenizer(self.tokenizer).vocab_size

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return load_tokenizer(self.tokenizer).pad_id

    @property
    def mask_id(self) -> int:
        """Id of the mask token. Raises DualfuseError if the tokenizer has none."""
        if not self.has_mask:
            raise DualfuseError(
                f"tokenizer {self.tokenizer} has no mask token, so tokens cannot be masked: set mlm_weight 0, or use a "
                "model with the tokenizer of BERT or RoBERTa"
            )
        return load_tokenizer(self.tokenizer).mask_id

    @property
    def unknown_id(self) -> int:
        """Id of the token for unknown words; -1 for a tokenizer of bytes, which has none."""
        tokenizer = load_tokenizer(self.tokenizer).tokenizer
        return next(filter(None, map(tokenizer.token_to_id, UNKNOWN)), NONE)

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask token; CLIP and SigLIP have none."""
        return load_tokenizer(self.tokenizer).mask_id != NONE

    def encode(self, text: str) -> EncodedText:
        """Return the start token, the tokens of ``text`` up to the maximum length, and the end token.

        SigLIP has no start token. Names of special tokens inside ``text`` ("[SEP]") are encoded as ordinary characters.
        Raises DualfuseError for a text that is not valid Unicode.
        """
        loaded = load_tokenizer(self.tokenizer)
        kept = self.length - loaded.num_special
        encoding = _encode_beginning(loaded, text, kept)
        words = (-1 if word is None else word for word in encoding.word_ids[:kept])
        return EncodedText(
            ids=loaded.with_ends(encoding.ids[:kept]),
            word_ids=np.array((*[-1] * (loaded.num_special - 1), *words, -1), dtype=np.int64),
            truncated=len(encoding.ids) > kept,
        )

    def encode_pair(self, texts: Sequence[str]) -> np.ndarray:
        """Return the ids (T,) of a text, or of two as BERT ([CLS] A [SEP] B [SEP]) or RoBERTa (<s> A </s></s> B </s>).

        If both are too long, the longer one is cut to half of the maximum length or what the other one leaves, as by
        the strategy "longest_first" of the tokenizers library.
        """
        if len(texts) == 1:
            return self.encode(texts[0]).ids
        loaded = load_tokenizer(self.tokenizer)
        first, second = (list(_encode_beginning(loaded, text, self.length).ids) for text in texts)
        between = [loaded.end] * (2 if loaded.is_roberta else 1)
        room = max(0, self.length - len(between) - 2)
        if len(first) + len(second) > room:
            short = min(len(first), len(second), room // 2)
            cut = (short, room - short) if len(first) <= len(second) else (room - short, short)
            first, second = first[: cut[0]], second[: cut[1]]
        return np.array([loaded.start, *first, *between, *second, loaded.end], dtype=np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ``ids`` (T,) without special tokens."""
        return load_tokenizer(self.tokenizer).decode([int(number) for number in ids])

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into ``folder``, in the format of the tokenizers library."""
        content = load_tokenizer(self.tokenizer).tokenizer.to_str(pretty=True)
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer and the ids that masking and padding need; ``NONE`` for a start or mask token that it lacks."""

    tokenizer: Tokenizer
    vocab_size: int
    start: int
    end: int
    pad_id: int
    mask_id: int

    @property
    def is_roberta(self) -> bool:
        """Whether the special tokens are RoBERTa's."""
        return self.tokenizer.token_to_id(ROBERTA_SPECIAL[0]) == self.start

    @property
    def num_special(self) -> int:
        """Number of special tokens around a text: the end, and maybe the start."""
        return 1 + (self.start != NONE)

    @property
    def special_ids(self) -> list[int]:
        """Ids of the special tokens."""
        return [number for number in (self.start, self.end, self.pad_id, self.mask_id) if number != NONE]

    def with_ends(self, ids: Sequence[int]) -> np.ndarray:
        """Return ids (T,) between the start token, if there is one, and the end token."""
        start = () if self.start == NONE else (self.start,)
        return np.array((*start, *ids, self.end), dtype=np.int64)

    def encode(self, text: str) -> Encoding:
        """Return the tokens of a text without start and end; raises DualfuseError for half of a surrogate pair."""
        try:
            with library_errors("the text cannot be tokenized"):
                return self.tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:  # half of a surrogate pair, or bytes of the command line
            raise DualfuseError(f"the text {brief(text)!r} is not valid Unicode; give texts in UTF-8") from error

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        with library_errors("the tokens cannot be decoded"):
            return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


@contextmanager
def library_errors(failure: str) -> Iterator[None]:
    """Turn the errors of the library into ``DualfuseError``: it raises bare Exception, and BaseException if it panics.

    A panic is a fault of the library that a damaged tokenizer or an unusual text makes visible.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, TypeError, UnicodeEncodeError):
        raise
    except BaseException as error:
        raise DualfuseError(f"{failure}: {error}") from error


@cache
def load_tokenizer(path: str) -> LoadedTokenizer:
    """Return the tokenizer in the file ``path``, or BERT's for ""; raises DualfuseError if it is unusable."""
    tokenizer = read_tokenizer(Path(path)) if path else bert_tokenizer()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # captions must not inject an end or mask token
    with library_errors(f"tokenizer {path} has no token for unknown characters, and needs one"):
        tokenizer.encode(RARE_CHARACTER, add_special_tokens=False)
    for names in STYLES:
        ids = [tokenizer.token_to_id(name) if name else NONE for name in names]
        start, end, pad, mask = ids
        if start is not None and end is not None and pad is not None and mask is not None:
            vocabulary = max(tokenizer.get_vocab().values()) + 1
            if vocabulary > MAX_VOCABULARY:
                raise DualfuseError(f"tokenizer {path} has the id {vocabulary - 1:,}; at most {MAX_VOCABULARY:,} fit")
            return LoadedTokenizer(tokenizer, vocabulary, start=start, end=end, pad_id=pad, mask_id=mask)
    raise DualfuseError(
        f"tokenizer {path} lacks special tokens: it needs all of {', '.join(BERT_SPECIAL)} (BERT) "
        f"or all of {', '.join(ROBERTA_SPECIAL)} (RoBERTa), or the start and end tokens of CLIP or SigLIP; add them "
        "before saving it"
    )


def _encode_beginning(tokenizer: LoadedTokenizer, text: str, kept: int) -> Encoding:
    """Encode at least the first ``kept`` + 1 tokens of a text, without encoding all of a very long text.

    Where the text is cut, its last word may be incomplete; none of its tokens are among the first ``kept``.
    """
    stop = CHARACTERS_PER_TOKEN * kept
    while stop < len(text):
        encoding = tokenizer.encode(text[:stop])
        words = encoding.word_ids
        if len(words) > kept and words[kept] != words[-1]:
            return encoding
        stop *= 4
    return tokenizer.encode(text)


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer stored in the file ``path``."""
    if not path.is_file():
        raise DualfuseError(f"tokenizer {path} is not a file; give the path of a tokenizer.json, or '' for BERT's")
    content = read_bounded(path, MAX_FILE)
    with library_errors(f"tokenizer {path} is not a tokenizer.json of the tokenizers library"):
        parsed = json.loads(content)
        growth = max(_growth(parsed.get(stage)) for stage in TEXT_STAGES)
        if growth > MAX_GROWTH:
            raise DualfuseError(f"it makes texts up to {growth:,} times as long; at most {MAX_GROWTH:,} is allowed")
        return Tokenizer.from_str(content.decode())


def _growth(stage: Any) -> int:  # Any: JSON
    """Return the factor by which the components of a stage together may lengthen a text, in bytes."""
    if isinstance(stage, list):
        return math.prod(map(_growth, stage))
    if not isinstance(stage, dict):
        return 1
    inner = math.prod(_growth(value) for value in stage.values() if isinstance(value, dict | list))
    match stage:
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return max(1, -(-len(new.encode()) // len(old.encode())))
        case {"type": "Replace", "content": str(new)}:
            return 1 + len(new.encode())  # an expression may match every position
        case {"type": "ByteLevel"}:
            return 2
        case {"type": "Precompiled", "precompiled_charsmap": str(table)}:
            return 1 + len(table) // 1_000_000 * MAX_GROWTH  # published ones have 0.3 MB
    return inner


def bert_tokenizer() -> Tokenizer:
    """Return the tokenizer of BERT base uncased: lower case, no accents, WordPiece."""
    pieces = BERT_VOCABULARY.read_text(encoding="utf-8").splitlines()
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", *BERT_SPECIAL])
    return tokenizer


def roberta_tokenizer(vocab_json: Path, merges_txt: Path) -> Tokenizer:
    """Return RoBERTa's byte-level tokenizer from the two files of a hub folder without a tokenizer.json.

    Save it (``.save(path)``) and pass that path to ``TextTransform``. Words include the space before them. Raises
    DualfuseError if a file is missing or is not such a vocabulary, or if RoBERTa's special tokens are missing.
    """
    for path in (vocab_json, merges_txt):
        if not path.is_file():
            raise DualfuseError(f"{path} is not a file; RoBERTa's tokenizer consists of a vocab.json and a merges.txt")
        check_regular(path, MAX_FILE)
    with library_errors(f"{vocab_json} and {merges_txt} are not a vocabulary and its merges"):
        pieces = models.BPE.from_file(str(vocab_json), str(merges_txt))
    tokenizer = Tokenizer(pieces)
    special = [*ROBERTA_SPECIAL, "<unk>"]
    if missing := [name for name in special if tokenizer.token_to_id(name) is None]:
        raise DualfuseError(f"{vocab_json} lacks {', '.join(missing)}; RoBERTa's vocabulary holds {', '.join(special)}")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer
