"""Text: from a caption to token ids, and which of them are hidden for masked language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dualfuse.errors import DualfuseError

BERT_VOCABULARY = Path(__file__).parent / "bert_base_uncased" / "vocab.txt"
BERT_SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
ROBERTA_SPECIAL = ("<s>", "</s>", "<pad>", "<mask>")
BERT_UNKNOWN = 100
BEGINNING = 50  # characters a token that are looked at first; words have five or so
UNHEARD_OF = "\U0002ebe0"  # a rare character that hardly a vocabulary holds
IGNORE = -100  # the label cross-entropy leaves out


@dataclass(frozen=True, eq=False)
class EncodedText:
    """One encoded text: ``ids`` (T,) and, for each token, the number of its word in ``words`` (T,).

    Both are int64. Special tokens have word -1; ``truncated`` says whether something was cut off.
    """

    ids: np.ndarray
    word_ids: np.ndarray
    truncated: bool


@dataclass(frozen=True)
class TextTransform:
    """Turns captions into token ids; small to pickle, because the tokenizer is loaded once by each process."""

    length: int = 40
    """Most tokens of a text, start and end tokens included; the rest is cut off."""
    tokenizer: str = ""
    """Path of a tokenizer.json (BERT or RoBERTa style); empty for the tokens of BERT base uncased."""

    def __post_init__(self) -> None:
        """Refuse a length that leaves no room for text."""
        if self.length < 3:
            raise DualfuseError(f"text length is {self.length}; it must be 3 or more: start, one token, end")

    @property
    def vocab_size(self) -> int:
        """Number of token ids: rows an embedding table needs."""
        return load_tokenizer(self.tokenizer).vocab_size

    @property
    def pad_id(self) -> int:
        """Id of the token that fills up short rows."""
        return load_tokenizer(self.tokenizer).pad_id

    @property
    def mask_id(self) -> int:
        """Id of the token that hides a word."""
        return load_tokenizer(self.tokenizer).mask_id

    def encode(self, text: str) -> EncodedText:
        """Return start token, the tokens of ``text`` as far as they fit, end token.

        Names of special tokens inside ``text`` ("[SEP]") are read as ordinary characters.
        """
        loaded = load_tokenizer(self.tokenizer)
        kept = self.length - 2
        encoding = _encode_beginning(loaded.tokenizer, text, kept)
        words = (-1 if word is None else word for word in encoding.word_ids[:kept])
        return EncodedText(
            ids=np.array((loaded.start, *encoding.ids[:kept], loaded.end), dtype=np.int64),
            word_ids=np.array((-1, *words, -1), dtype=np.int64),
            truncated=len(encoding.ids) > kept,
        )

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ``ids`` (T,), special tokens left out."""
        return load_tokenizer(self.tokenizer).tokenizer.decode([int(number) for number in ids])

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into ``folder``, for use as ``Text(tokenizer=...)`` and by other libraries."""
        try:
            load_tokenizer(self.tokenizer).tokenizer.save(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise OSError(f"{folder / 'tokenizer.json'}: {error}") from error


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer with the ids that masking and padding need."""

    tokenizer: Tokenizer
    vocab_size: int
    start: int
    end: int
    pad_id: int
    mask_id: int


@cache
def load_tokenizer(path: str) -> LoadedTokenizer:
    """Return the tokenizer in the file ``path``, or BERT's tokens for ""; DualfuseError if it will not do."""
    tokenizer = read_tokenizer(Path(path)) if path else bert_tokenizer()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a caption must not smuggle in an end or mask token
    try:
        tokenizer.encode(UNHEARD_OF, add_special_tokens=False)
    except Exception as error:  # the library raises bare Exception
        raise DualfuseError(
            f"tokenizer {path} has no token for what it does not know, and needs one: {error}"
        ) from error
    for names in (BERT_SPECIAL, ROBERTA_SPECIAL):
        ids = [tokenizer.token_to_id(name) for name in names]
        start, end, pad, mask = ids
        if start is not None and end is not None and pad is not None and mask is not None:
            vocabulary = max(tokenizer.get_vocab().values()) + 1
            return LoadedTokenizer(tokenizer, vocabulary, start=start, end=end, pad_id=pad, mask_id=mask)
    raise DualfuseError(
        f"tokenizer {path} lacks special tokens: it needs all of {', '.join(BERT_SPECIAL)} (BERT) "
        f"or all of {', '.join(ROBERTA_SPECIAL)} (RoBERTa); add them before saving it"
    )


def _encode_beginning(tokenizer: Tokenizer, text: str, kept: int) -> Encoding:
    """Encode as much of a long text as its first ``kept`` tokens take, and at least one more.

    A whole megabyte would cost seconds. Where a text is cut off, its last word may be another one; no token of that is
    among these.
    """
    stop = BEGINNING * kept
    while stop < len(text):
        encoding = tokenizer.encode(text[:stop], add_special_tokens=False)
        words = encoding.word_ids
        if len(words) > kept and words[kept] != words[-1]:
            return encoding
        stop *= 4
    return tokenizer.encode(text, add_special_tokens=False)


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer stored in the file ``path``."""
    if not path.is_file():
        raise DualfuseError(f"tokenizer {path} is not a file; give the path of a tokenizer.json, or '' for BERT's")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DualfuseError(f"tokenizer {path} is not a tokenizer.json of the tokenizers library: {error}") from error


def bert_tokenizer() -> Tokenizer:
    """Return the tokenizer of BERT base uncased: lower case, no accents, tokens."""
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
    """Return RoBERTa's byte-level tokenizer from the two files of a hub folder that has no tokenizer.json.

    Save it (``.save(path)``) and give that path to ``Text``. A word carries the space before it; the first has none.
    Raises DualfuseError for files that are missing, are no such vocabulary, or lack RoBERTa's special tokens.
    """
    for path in (vocab_json, merges_txt):
        if not path.is_file():
            raise DualfuseError(f"{path} is not a file; RoBERTa's tokenizer is made of a vocab.json and a merges.txt")
    try:
        pieces = models.BPE.from_file(str(vocab_json), str(merges_txt))
    except Exception as error:  # the library raises bare Exception
        raise DualfuseError(f"{vocab_json} and {merges_txt} are no vocabulary with its merges: {error}") from error
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


def mask_words(
    words: EncodedText, vocabulary: int, mask_id: int, rng: np.random.Generator, share: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, labels), both (T,), with about ``share`` of the real tokens hidden, whole words at a time.

    Shuffled words are taken while they fit into max(1, round(share * real tokens)), the first one always: a text
    with any word at all teaches something. Labels are -100 where nothing is to be predicted.
    """
    groups = whole_words(words)
    budget = max(1, round(share * sum(map(len, groups))))
    chosen: list[int] = []
    for number in rng.permutation(len(groups)).tolist():
        if not chosen or len(chosen) + len(groups[number]) <= budget:
            chosen += groups[number]
    return apply_mask(words.ids, chosen, vocabulary, mask_id, rng)


def mask_words_official(
    words: EncodedText, vocabulary: int, mask_id: int, rng: np.random.Generator, share: float = 0.15, length: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, labels), both (T,), hidden by the rule VLMo was released with: sometimes nothing is.

    The budget is ``share`` of ``length``, the padded one, and [PAD] tokens compete for it; those and [UNK] are
    dropped afterwards (the whole-word collator of transformers 4.8.1). It knows only the tokens of BERT.
    """
    groups = whole_words(words) + [[position] for position in range(len(words.ids), length)]
    budget = max(1, round(share * length))
    chosen: list[int] = []
    for number in rng.permutation(len(groups)).tolist():
        if len(chosen) + len(groups[number]) <= budget:
            chosen += groups[number]
    real = [position for position in chosen if position < len(words.ids) and words.ids[position] != BERT_UNKNOWN]
    return apply_mask(words.ids, real, vocabulary, mask_id, rng)


def mask_tokens(
    words: EncodedText, vocabulary: int, mask_id: int, rng: np.random.Generator, share: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, labels), both (T,), with each token but the special ones hidden with probability ``share``.

    Tokens are drawn one by one, so words may be hidden in part, and a text with none is common: the rule of Hugging
    Face's DataCollatorForLanguageModeling, with which BridgeTower and METER were pre-trained.
    """
    is_chosen = (words.word_ids >= 0) & (rng.random(len(words.ids)) < share)
    return apply_mask(words.ids, np.flatnonzero(is_chosen).tolist(), vocabulary, mask_id, rng)


MASKING_RULES = {"whole_word": mask_words, "token": mask_tokens, "official": mask_words_official}
"""Which tokens are hidden: whole words, single tokens as RoBERTa, or as VLMo was released."""


def whole_words(words: EncodedText) -> list[list[int]]:
    """Return the positions of the tokens of each word, special tokens left out."""
    groups: dict[int, list[int]] = {}
    for position, word in enumerate(words.word_ids.tolist()):
        if word >= 0:
            groups.setdefault(word, []).append(position)
    return list(groups.values())


def apply_mask(
    ids: np.ndarray, positions: list[int], vocabulary: int, mask_id: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, labels) with each token at ``positions`` masked (80%), replaced by any id (10%) or kept (10%)."""
    hidden, labels = ids.copy(), np.full_like(ids, IGNORE)
    labels[positions] = ids[positions]
    fate = rng.random(len(positions))
    anything = rng.integers(vocabulary, size=len(positions))
    hidden[positions] = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, anything, ids[positions]))
    return hidden, labels


def pad_arrays(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Return the ``rows`` (each (T,)) as one array (B, longest T), the short ones filled up with ``value``."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=rows[0].dtype)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded
