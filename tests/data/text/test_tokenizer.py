"""BERT's ids against known ones, RoBERTa's against transformers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dualfuse.data.text.tokenizer import TextTransform, roberta_tokenizer

CLS, SEP, UNK, MASK, VOCABULARY = 101, 102, 100, 103, 30_522


def tokens(text: str) -> list[str]:
    """Return the tokens of ``text`` by looking up its ids in the vocabulary file."""
    folder = Path(__file__).parents[3] / "dualfuse" / "data" / "text" / "bert_base_uncased"
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return [pieces[number] for number in TextTransform().encode(text).ids]


def test_ids_equal_berts() -> None:
    assert TextTransform().encode("hello world").ids.tolist() == [CLS, 7592, 2088, SEP]
    assert TextTransform().encode("A cat sits on the mat.").ids.tolist() == [
        CLS,
        1037,
        4937,
        7719,
        2006,
        1996,
        13523,
        1012,
        SEP,
    ]
    assert (TextTransform().mask_id, TextTransform().pad_id, TextTransform().vocab_size) == (MASK, 0, VOCABULARY)


def test_case_accents_punctuation_and_subwords() -> None:
    assert tokens("Hello, WORLD!") == ["[CLS]", "hello", ",", "world", "!", "[SEP]"]
    assert tokens("café naïve") == ["[CLS]", "cafe", "naive", "[SEP]"]
    assert tokens("embeddings") == ["[CLS]", "em", "##bed", "##ding", "##s", "[SEP]"]
    assert tokens("don't") == ["[CLS]", "don", "'", "t", "[SEP]"]
    assert tokens("東京") == ["[CLS]", "東", "京", "[SEP]"]
    assert tokens(" a \t\n b\x00\u200b ") == ["[CLS]", "a", "b", "[SEP]"]
    assert tokens("x" * 101) == ["[CLS]", "[UNK]", "[SEP]"]
    assert tokens("") == ["[CLS]", "[SEP]"]


def test_names_of_special_tokens_in_captions_are_plain_text() -> None:
    assert tokens("a [SEP] b [MASK]") == ["[CLS]", "a", "[", "sep", "]", "b", "[", "mask", "]", "[SEP]"]


def test_tokens_belong_to_their_word() -> None:
    words = TextTransform().encode("embeddings, please")
    assert words.word_ids.tolist() == [-1, 0, 0, 0, 0, 1, 2, -1]
    assert words.ids.dtype == words.word_ids.dtype == np.int64


def test_long_text_keeps_both_ends() -> None:
    text = "one two three four five"
    words = TextTransform(length=5).encode(text)
    assert words.truncated and words.ids.tolist() == [CLS, 2028, 2048, 2093, SEP]
    assert words.word_ids.tolist() == [-1, 0, 1, 2, -1]
    exact = TextTransform(length=7).encode(text)
    assert not exact.truncated and len(exact.ids) == 7
    with pytest.raises(ValueError, match="length is 2"):
        TextTransform(length=2)


def test_decode_inverts_encode() -> None:
    assert TextTransform().decode(TextTransform().encode("The embeddings of a café").ids) == "the embeddings of a cafe"


def test_pickled_text_encodes_the_same() -> None:
    text = TextTransform(length=12)
    text.encode("load it")
    data = pickle.dumps(text)
    assert len(data) < 500  # not the tokenizer itself
    assert pickle.loads(data).encode("a dog").ids.tolist() == text.encode("a dog").ids.tolist()


def test_saved_tokenizer_encodes_the_same(tmp_path: Path) -> None:
    TextTransform().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    text = "Two embeddings; [MASK] in a café."
    assert TextTransform(tokenizer=str(path)).encode(text).ids.tolist() == TextTransform().encode(text).ids.tolist()
    assert Tokenizer.from_file(str(path)).encode("hello world").ids == [CLS, 7592, 2088, SEP]


def test_roberta_style_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the dog and the cat"] * 5, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = TextTransform(tokenizer=str(tmp_path / "tokenizer.json"))
    words = text.encode("the cat <mask> and")
    assert (text.pad_id, text.mask_id, text.vocab_size) == (1, 4, tokenizer.get_vocab_size())
    assert (words.ids[0], words.ids[-1]) == (0, 2) and 4 not in words.ids
    assert (
        words.word_ids[0] == words.word_ids[-1] == -1
        and (words.word_ids[1:-1] >= 0).all()
        and words.word_ids.max() == 5
    )  # the, cat, <, mask, >, and
    assert text.decode(words.ids) == "the cat <mask> and"


TRICKY = (
    "the cat",
    "The  dog   and the cat",
    " the cat",
    "the cat ",
    "don't, it's I'LL we've",
    "café naïve",
    "cafe\u0301",
    "\N{DOG}\N{ZERO WIDTH JOINER}\N{CAT} 東京",
    "12 dogs, 345.6!",
    "a\n\tb\u00a0c\r\n",
    "\x00\ufffd",
    "",
    "   ",
)


def test_roberta_of_two_files_equals_transformers(hub_files: Path, tmp_path: Path) -> None:
    from transformers import RobertaTokenizerFast

    theirs = RobertaTokenizerFast.from_pretrained(str(hub_files))
    ours = roberta_tokenizer(hub_files / "vocab.json", hub_files / "merges.txt")
    ours.save(str(tmp_path / "tokenizer.json"))
    text = TextTransform(length=60, tokenizer=str(tmp_path / "tokenizer.json"))
    assert (text.vocab_size, text.pad_id, text.mask_id) == (len(theirs), 1, theirs.mask_token_id)
    assert text.mask_id == text.vocab_size - 1
    for caption in TRICKY:
        wanted = theirs(caption)["input_ids"]
        assert ours.encode(caption).ids == wanted, caption
        found = text.encode(caption)
        assert found.ids.tolist() == wanted and (wanted[0], wanted[-1]) == (0, 2), caption
        assert text.decode(found.ids) == caption
        numbers = theirs(caption).word_ids()
        assert found.word_ids.tolist() == [-1 if number is None else number for number in numbers]
    assert text.encode("the cat").ids.tolist() != text.encode(" the cat").ids.tolist()
    assert text.vocab_size - 1 not in text.encode("a <mask> b</s>").ids


def test_unusable_roberta_files_are_refused(hub_files: Path, tmp_path: Path) -> None:
    vocabulary, merges = hub_files / "vocab.json", hub_files / "merges.txt"
    with pytest.raises(ValueError, match=r"none\.txt is not a file"):
        roberta_tokenizer(vocabulary, tmp_path / "none.txt")
    with pytest.raises(ValueError, match="are not a vocabulary and its merges"):
        roberta_tokenizer(merges, vocabulary)
    pieces = json.loads(vocabulary.read_text(encoding="utf-8"))
    del pieces["<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps(pieces), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json lacks <mask>; RoBERTa's vocabulary holds <s>, </s>, <pad>"):
        roberta_tokenizer(tmp_path / "vocab.json", merges)


def test_unusable_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a file"):
        TextTransform(tokenizer=str(tmp_path / "none.json")).encode("a")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"model": "nothing"}))
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        TextTransform(tokenizer=str(wrong)).encode("a")
    bare = tmp_path / "bare.json"
    Tokenizer(models.WordLevel({"a": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3}, unk_token="a")).save(str(bare))
    with pytest.raises(ValueError, match=r"lacks special tokens.*\[MASK\].*<mask>"):
        TextTransform(tokenizer=str(bare)).encode("a")
    no_unknown = tmp_path / "no_unknown.json"
    Tokenizer(models.WordPiece({"a": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "[MASK]": 4})).save(str(no_unknown))
    with pytest.raises(ValueError, match=r"no_unknown\.json has no token for unknown characters.*Missing \[UNK\]"):
        TextTransform(tokenizer=str(no_unknown)).encode("a")
