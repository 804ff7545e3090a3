"""SigLIP's tokenizer from a sentencepiece model: the tokens of transformers, on nasty strings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sentencepiece
from dual_folders import TEXTS
from transformers import SiglipTokenizer

from dualfuse.convert.sentencepiece import siglip_tokenizer
from dualfuse.convert.tokenizer import find_tokenizer
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.errors import DualfuseError, MissingExtraError

CORPUS = [
    "a photo of the cat",
    "the boat on the water",
    "it's a wonderful naïve café",
    "colour of words, 3,000.50!",
] * 20


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a unigram model with the special tokens of SigLIP's."""
    folder = tmp_path_factory.mktemp("spiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "spiece"),
        vocab_size=40,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    return folder / "spiece.model"


def test_tokens_are_those_of_transformers(spiece: Path) -> None:
    theirs, ours = SiglipTokenizer(str(spiece)), siglip_tokenizer(spiece)
    for text in TEXTS:
        if "<" not in text:  # names of special tokens are plain text here
            assert ours.encode(text).ids == theirs(text)["input_ids"], text


def test_a_text_ends_with_the_end_token_and_has_no_start(spiece: Path) -> None:
    transform = TextTransform(8, find_tokenizer(str(spiece)))
    encoded = transform.encode("the cat the boat the cat the boat the cat")
    assert len(encoded.ids) == 8 and encoded.ids[-1] == 1 and encoded.truncated
    assert transform.pad_id == 1 and not transform.has_mask
    with pytest.raises(DualfuseError, match="has no mask token"):
        _ = transform.mask_id


def test_other_files_are_refused(tmp_path: Path, spiece: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.model").write_bytes(b"\xff\xff not a model")
    with pytest.raises(DualfuseError, match="is not a"):
        siglip_tokenizer(tmp_path / "bad.model")
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[sentencepiece\]'"):
        siglip_tokenizer(spiece)
