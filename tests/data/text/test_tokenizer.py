"""Text: BERT's ids known by hand, RoBERTa's as transformers says, and the odds of the masking rules."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dualfuse.data.text.tokenizer import (
    EncodedText,
    TextTransform,
    mask_tokens,
    mask_words,
    mask_words_official,
    pad_arrays,
    roberta_tokenizer,
)

CLS, SEP, UNK, MASK, VOCABULARY = 101, 102, 100, 103, 30_522


def tokens(text: str) -> list[str]:
    """What each id of ``text`` stands for, read from the list of tokens itself."""
    folder = Path(__file__).parents[3] / "dualfuse" / "data" / "text" / "bert_base_uncased"
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return [pieces[number] for number in TextTransform().encode(text).ids]


def test_ids_are_berts() -> None:
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


def test_case_accents_punctuation_and_pieces() -> None:
    assert tokens("Hello, WORLD!") == ["[CLS]", "hello", ",", "world", "!", "[SEP]"]
    assert tokens("café naïve") == ["[CLS]", "cafe", "naive", "[SEP]"]
    assert tokens("embeddings") == ["[CLS]", "em", "##bed", "##ding", "##s", "[SEP]"]
    assert tokens("don't") == ["[CLS]", "don", "'", "t", "[SEP]"]
    assert tokens("東京") == ["[CLS]", "東", "京", "[SEP]"]
    assert tokens(" a \t\n b\x00\u200b ") == ["[CLS]", "a", "b", "[SEP]"]
    assert tokens("x" * 101) == ["[CLS]", "[UNK]", "[SEP]"]
    assert tokens("") == ["[CLS]", "[SEP]"]


def test_special_names_in_a_caption_are_plain_text() -> None:
    assert tokens("a [SEP] b [MASK]") == ["[CLS]", "a", "[", "sep", "]", "b", "[", "mask", "]", "[SEP]"]


def test_pieces_belong_to_their_word() -> None:
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


def test_decode_gives_the_text_back() -> None:
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


@pytest.fixture(scope="module")
def hub_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocab.json and merges.txt, specials where RoBERTa has them: <mask> last."""
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the dog and the cat don't it's a café, naïve dogs"] * 5, trainer)
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["<mask>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return folder


def test_roberta_of_two_files_says_what_transformers_says(hub_files: Path, tmp_path: Path) -> None:
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


def test_roberta_files_that_will_not_do_say_why(hub_files: Path, tmp_path: Path) -> None:
    vocabulary, merges = hub_files / "vocab.json", hub_files / "merges.txt"
    with pytest.raises(ValueError, match=r"none\.txt is not a file"):
        roberta_tokenizer(vocabulary, tmp_path / "none.txt")
    with pytest.raises(ValueError, match="are no vocabulary with its merges"):
        roberta_tokenizer(merges, vocabulary)
    pieces = json.loads(vocabulary.read_text(encoding="utf-8"))
    del pieces["<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps(pieces), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json lacks <mask>; RoBERTa's vocabulary holds <s>, </s>, <pad>"):
        roberta_tokenizer(tmp_path / "vocab.json", merges)


def test_unusable_tokenizers_say_why(tmp_path: Path) -> None:
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
    knowing = tmp_path / "knowing.json"
    Tokenizer(models.WordPiece({"a": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "[MASK]": 4})).save(str(knowing))
    with pytest.raises(ValueError, match=r"knowing\.json has no token for what it does not know.*Missing \[UNK\]"):
        TextTransform(tokenizer=str(knowing)).encode("a")


def sentence(rng: np.random.Generator, length: int, continued: float = 0.0) -> EncodedText:
    """``length`` real tokens of which the share ``continued`` goes on with the word before."""
    opens = np.concatenate(([1], rng.random(length - 1) >= continued))
    numbers = (opens.cumsum() - 1).astype(np.int64)
    ids = np.array([CLS, *(2000 + np.arange(length)), SEP], dtype=np.int64)
    return EncodedText(ids, np.array([-1, *numbers, -1], dtype=np.int64), truncated=False)


def count_released(length: int, continued: float, times: int = 6000) -> tuple[float, float]:
    """Masked tokens on average, and the share of sentences with none."""
    rng = np.random.default_rng(length)
    counts = []
    for _ in range(times):
        _, labels = mask_words_official(sentence(rng, length, continued), VOCABULARY, MASK, rng)
        counts.append((labels != -100).sum())
    return float(np.mean(counts)), float(np.mean(np.array(counts) == 0))


@pytest.mark.parametrize("length", [8, 14, 20])
def test_released_rule_draws_six_of_38_with_padding_among_them(length: int) -> None:
    average, none = count_released(length, continued=0)
    assert average == pytest.approx(6 * length / 38, abs=0.06)
    assert none == pytest.approx(math.comb(38 - length, 6) / math.comb(38, 6), abs=0.02)


@pytest.mark.parametrize(("length", "average", "none"), [(8, 1.16, 0.30), (14, 2.1, 0.09), (20, 3.0, 0.02)])
def test_released_rule_gives_the_reference_routines_numbers(length: int, average: float, none: float) -> None:
    """Number measured on the routine of transformers 4.8.1; a fifth of the tokens went on with a word."""
    found_average, found_none = count_released(length, continued=0.2)
    assert found_average == pytest.approx(average, abs=0.12)
    assert found_none == pytest.approx(none, abs=0.02)


def test_released_rule_drops_unknown_tokens_and_keeps_words_whole() -> None:
    rng = np.random.default_rng(0)
    ids = np.array([CLS, UNK, 2001, 2002, UNK, 2003, SEP])
    words = EncodedText(ids, np.array([-1, 0, 1, 1, 2, 3, -1]), truncated=False)
    seen = np.zeros(7, dtype=int)
    for _ in range(400):
        _, labels = mask_words_official(words, VOCABULARY, MASK, rng, length=10)
        chosen = labels != -100
        seen += chosen
        assert chosen[2] == chosen[3]
    assert seen[[0, 1, 4, 6]].sum() == 0 and (seen[[2, 5]] > 0).all()


@pytest.mark.parametrize(("length", "budget"), [(1, 1), (3, 1), (8, 1), (14, 2), (20, 3), (38, 6)])
def test_our_rule_fills_its_budget_and_never_masks_nothing(length: int, budget: int) -> None:
    rng = np.random.default_rng(0)
    seen = np.zeros(length + 2)
    for _ in range(300):
        _, labels = mask_words(sentence(rng, length), VOCABULARY, MASK, rng)
        assert (labels != -100).sum() == budget
        seen += labels != -100
    assert seen[0] == seen[-1] == 0 and (seen[1:-1] > 0).all()


def test_our_rule_takes_whole_words_about_15_percent_of_tokens() -> None:
    rng = np.random.default_rng(0)
    masked = real = 0
    for _ in range(1500):
        words = sentence(rng, int(rng.integers(12, 38)), continued=0.3)
        _, labels = mask_words(words, VOCABULARY, MASK, rng)
        chosen = labels != -100
        touched = np.isin(words.word_ids, words.word_ids[chosen])
        np.testing.assert_array_equal(chosen, touched)
        assert chosen.any() and not chosen[0] and not chosen[-1]
        masked, real = masked + chosen.sum(), real + len(chosen) - 2
    assert masked / real == pytest.approx(0.15, abs=0.01)


def test_a_word_longer_than_the_budget_is_masked_when_it_comes_first() -> None:
    words = EncodedText(np.array([CLS, 5, 6, 7, 8, SEP]), np.array([-1, 0, 0, 0, 0, -1]), truncated=False)
    _, labels = mask_words(words, VOCABULARY, MASK, np.random.default_rng(0))
    assert labels.tolist() == [-100, 5, 6, 7, 8, -100]


@pytest.mark.parametrize(("length", "share"), [(4, 0.15), (12, 0.15), (6, 0.4)])
def test_tokens_are_masked_one_by_one(length: int, share: float) -> None:
    """Count are binomial, every place is as likely, and two tokens of a word know nothing of each other."""
    rng = np.random.default_rng(length)
    words = sentence(rng, length, continued=0.5)
    chosen = np.array([mask_tokens(words, VOCABULARY, MASK, rng, share)[1] != -100 for _ in range(6000)])
    assert not chosen[:, [0, -1]].any()
    counts = np.bincount(chosen.sum(1), minlength=length + 1) / len(chosen)
    binomial = [math.comb(length, k) * share**k * (1 - share) ** (length - k) for k in range(length + 1)]
    np.testing.assert_allclose(counts, binomial, atol=0.025)
    real = chosen[:, 1:-1]
    np.testing.assert_allclose(real.mean(0), share, atol=0.025)
    together = (real.T.astype(float) @ real) / len(real)
    np.testing.assert_allclose(together[~np.eye(length, dtype=bool)], share**2, atol=0.025)


def test_tokens_are_masked_as_transformers_collator_does(hub_files: Path) -> None:
    from transformers import DataCollatorForLanguageModeling, RobertaTokenizerFast

    tokenizer = RobertaTokenizerFast.from_pretrained(str(hub_files))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=0)
    row = tokenizer("the dog and the cat don't it's a café")
    ids = np.array(row["input_ids"])
    words = EncodedText(ids, np.array([-1 if number is None else number for number in row.word_ids()]), truncated=False)
    batch = collate([{"input_ids": row["input_ids"]}] * 5000)
    rng, vocabulary = np.random.default_rng(0), len(tokenizer)
    ours = [mask_tokens(words, vocabulary, tokenizer.mask_token_id, rng) for _ in range(5000)]
    shares = []
    for hidden, labels in (np.moveaxis(ours, 1, 0), (batch["input_ids"].numpy(), batch["labels"].numpy())):
        is_chosen = labels != -100
        np.testing.assert_array_equal(labels[is_chosen], np.broadcast_to(ids, labels.shape)[is_chosen])
        is_mask = hidden == tokenizer.mask_token_id
        is_other = (hidden != ids) & ~is_mask
        shares.append([part.mean(0) for part in (is_chosen, is_mask, is_other)] + [(~is_chosen).all(1).mean()])
    for found, wanted in zip(*shares, strict=True):
        np.testing.assert_allclose(found, wanted, atol=0.03)


def test_a_text_without_words_has_nothing_to_mask() -> None:
    empty = TextTransform().encode("")
    for rule in (mask_words, mask_words_official, mask_tokens):
        ids, labels = rule(empty, VOCABULARY, MASK, np.random.default_rng(0))
        assert ids.tolist() == [CLS, SEP] and labels.tolist() == [-100, -100]


@pytest.mark.parametrize("rule", [mask_words, mask_words_official, mask_tokens])
def test_chosen_tokens_are_masked_replaced_or_kept_8_1_1(rule: Callable) -> None:
    rng = np.random.default_rng(0)
    fates = {"masked": 0, "replaced": 0, "kept": 0}
    replacements = []
    for _ in range(3000):
        words = sentence(rng, 20)
        before = words.ids.copy()
        ids, labels = rule(words, VOCABULARY, MASK, rng)
        np.testing.assert_array_equal(words.ids, before)
        chosen = labels != -100
        np.testing.assert_array_equal(ids[~chosen], before[~chosen])
        np.testing.assert_array_equal(labels[chosen], before[chosen])
        for new, old in zip(ids[chosen].tolist(), before[chosen].tolist(), strict=True):
            fate = "masked" if new == MASK else "kept" if new == old else "replaced"
            fates[fate] += 1
            if fate == "replaced":
                replacements.append(new)
    total = sum(fates.values())
    assert fates["masked"] / total == pytest.approx(0.8, abs=0.02)
    assert fates["replaced"] / total == pytest.approx(0.1, abs=0.015)
    assert min(replacements) < 1500 and max(replacements) > VOCABULARY - 1500
    assert np.mean(replacements) == pytest.approx(VOCABULARY / 2, rel=0.06)


def test_masking_depends_on_the_generator_only() -> None:
    words = sentence(np.random.default_rng(0), 20, continued=0.2)
    for rule in (mask_words, mask_words_official, mask_tokens):
        first = rule(words, VOCABULARY, MASK, np.random.default_rng(7))
        np.random.seed(0)
        again = rule(words, VOCABULARY, MASK, np.random.default_rng(7))
        np.testing.assert_array_equal(first, again)


def test_pad_fills_up_to_the_longest() -> None:
    rows = [np.array([1, 2, 3]), np.array([4]), np.array([], dtype=np.int64)]
    found = pad_arrays(rows, value=9)
    assert found.dtype == np.int64 and found.tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
