"""Splits: by their names in a source, or by a hash of the image."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from dualfuse.errors import DualfuseError

Shares = tuple[tuple[str, float], ...]  # (("val", 0.05), ("test", 0.05)); the rest is train

_SYNONYMS = {
    "training": "train",
    "restval": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}
_USUAL = ("train", "val", "test", *_SYNONYMS)
_NAMES = """
训练 训练集 訓練 訓練集 验证 验证集 驗證 驗證集 测试 测试集 測試 測試集 学習 検証 テスト 훈련 학습 검증 테스트 시험
обучение обучающая трейн валидация проверка тест тестирование навчання перевірка εκπαίδευση επικύρωση δοκιμή
تدريب تحقق اختبار אימון אימות בדיקה प्रशिक्षण सत्यापन परीक्षण परीक्षा การฝึก ทดสอบ
"""
_OTHER_SCRIPTS = frozenset(_NAMES.split())
"""Names of folders and files that are splits, in other scripts than Latin."""


def split_name(text: str) -> str:
    """Return the normalized name of a split: ``validation`` is ``val``, ``train2017`` is ``train``.

    Karpathy's ``restval`` joins ``train``, as in all published recipes. Other names are returned in lower case, with
    the letters of any script. Raises ``DualfuseError`` for a name without letters and digits.
    """
    plain = "_".join(_words(text))
    if not plain:
        raise DualfuseError(f"the name of a split has letters or digits; {text!r} has none")
    usual = _without_year(plain)
    return _SYNONYMS.get(usual, usual) if usual in _USUAL else plain


def is_split_name(text: str) -> bool:
    """Return whether ``text`` is a usual name of a split: train, val, dev, test, ..., тест, 训练, also with a year."""
    plain = unicodedata.normalize("NFC", text).lower()
    return _without_year(plain) in _USUAL or plain in _OTHER_SCRIPTS


def split_in_name(stem: str) -> str:
    """Return the split in a file name such as ``captions_train2017`` or ``food-val-00000``; empty: none or several."""
    splits = {split_name(word) for word in _words(stem) if is_split_name(word)}
    return splits.pop() if len(splits) == 1 else ""


def parse_shares(text: str) -> Shares:
    """Parse shares such as ``"val=0.05,test=0.05"``; empty: no shares. Raises ``DualfuseError`` for other texts."""
    shares = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([a-z][a-z0-9_]*)\s*=\s*(0?\.\d+)", part)
        if match is None or float(match[2]) == 0:
            raise DualfuseError(f"split {part!r} is invalid; give shares such as val=0.05,test=0.05")
        shares.append((match[1], float(match[2])))
    names = [name for name, _ in shares]
    if len(set(names)) < len(names) or "train" in names or sum(share for _, share in shares) >= 1:
        raise DualfuseError(f"split {text!r} must name each split once and leave a remainder, which becomes train")
    return tuple(shares)


def split_by_content(image: bytes, shares: Shares) -> str:
    """Return the split of an image by a hash of its bytes, so that equal files are in the same split."""
    position = int.from_bytes(hashlib.sha256(image).digest()[:8], "big") / 2**64
    for name, share in shares:
        if position < share:
            return name
        position -= share
    return "train"


def _words(text: str) -> list[str]:
    """Return the runs of letters, marks and digits of any script in ``text``, in lower case."""
    plain = unicodedata.normalize("NFC", text).lower()
    return "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in plain).split()


def _without_year(word: str) -> str:
    return re.sub(r"(19|20)\d\d$", "", word)
