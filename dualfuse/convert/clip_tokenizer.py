"""CLIP's tokenizer from the files of checkpoints without a tokenizer.json, as transformers' CLIPTokenizer builds it."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dualfuse.data.text.tokenizer import library_errors
from dualfuse.errors import DualfuseError
from dualfuse.files import open_regular, read_bounded, read_json_object

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI's file of merges."""
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_FILE = 32 << 20
MERGES = 49_152 - 256 - 2
"""Merges of OpenAI's file that CLIP uses; the others are unused."""
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def is_clip_vocabulary(vocab_json: Path) -> bool:
    """Whether a vocab.json has CLIP's start token."""
    return START in read_json_object(vocab_json)


def clip_tokenizer(vocab_json: Path, merges_txt: Path) -> Tokenizer:
    """Return CLIP's tokenizer from the two files of a hub folder. Raises DualfuseError if they are damaged."""
    vocabulary = read_json_object(vocab_json)
    lines = read_bounded(merges_txt, MAX_FILE).decode("utf-8", errors="replace").splitlines()
    return _build(vocabulary, [line for line in lines if line and not line.startswith("#version")], vocab_json)


def bpe_file_tokenizer(path: Path) -> Tokenizer:
    """Return CLIP's tokenizer from OpenAI's bpe_simple_vocab_16e6.txt.gz, or the same file unpacked.

    Raises DualfuseError if it is another file.
    """
    try:
        with open_regular(path, MAX_FILE) as file:
            packed = path.suffix == ".gz"
            content = gzip.GzipFile(fileobj=file).read(MAX_FILE) if packed else file.read(MAX_FILE)
        lines = content.decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DualfuseError(f"{path} is not OpenAI's {BPE_FILE}: {error}") from error
    merges = lines[1 : 1 + MERGES]
    characters = [character for character in _byte_characters()]
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    tokens += [merge.replace(" ", "", 1) for merge in merges]
    return _build({token: number for number, token in enumerate([*tokens, START, END])}, merges, path)


def _build(vocabulary: dict[str, int], merges: Sequence[str], path: Path) -> Tokenizer:
    if START not in vocabulary or END not in vocabulary:
        raise DualfuseError(f"{path} lacks {START} or {END}, so it is not CLIP's vocabulary")
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    with library_errors(f"{path} and its merges are not a vocabulary of CLIP"):
        pieces = models.BPE(
            vocabulary, pairs, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END, fuse_unk=False
        )
    tokenizer = Tokenizer(pieces)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, vocabulary[END]), (START, vocabulary[START]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def _byte_characters() -> list[str]:
    """Return the character that stands for each byte, in the order of OpenAI's vocabulary (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]
