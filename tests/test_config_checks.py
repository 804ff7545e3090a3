"""Values of configs are checked when a recipe is built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
from tiny import changed

from dualfuse.config import check_types
from dualfuse.data.image.transform import Augment
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule", "cosin", r"optim\.schedule is 'cosin'; allowed are 'linear', 'cosine', 'constant'"),
        ("precision", "fp16", r"run\.precision is 'fp16'; allowed are 'fp32', 'bf16'"),
        ("negatives", "sourc", r"task\.negatives is 'sourc'; allowed are .*'source'"),
        ("lr", "3e-4", r"optim\.lr is '3e-4'; it should be of type float"),
        ("steps", 10.0, r"run\.steps is 10\.0; it should be of type int"),
        ("steps", True, r"run\.steps is True"),
        ("fsdp", 1, r"run\.fsdp is 1; it should be of type bool"),
        ("betas", [0.9, 0.98], r"optim\.betas is \[0\.9, 0\.98\]; it should be of type tuple\[float, float\]"),
        ("betas", (0.9,), r"optim\.betas is"),
        ("train", ("a", 1), r"data\.train is"),
        ("train", "a.tar", r"data\.train is 'a\.tar'; it should be of type tuple\[str, \.\.\.\]"),
        ("augment", "none", r"data\.augment is 'none'; it should be of type Augment or None"),
        ("preprocess", None, r"data\.preprocess is None"),
        ("start_from", None, r"start_from is None; it should be of type str"),
        ("steps", -3, r"run\.steps is -3; it should be above 0"),
        ("steps", 0, r"run\.steps is 0"),
        ("keep_last", 0, r"run\.keep_last is 0"),
        ("grad_clip_norm", -1, r"optim\.grad_clip_norm is -1; it should be at least 0"),
        ("warmup", -5, r"optim\.warmup is -5"),
        ("lr", float("nan"), r"optim\.lr is nan; .*finite"),
        ("betas", (0.9, -0.1), r"optim\.betas is"),
        ("batch_size", 0, r"data\.batch_size is 0"),
        ("eval_rerank", -3, r"run\.eval_rerank is -3"),
    ],
)
def test_values_without_sense_are_refused(tiny: Recipe, field: str, value: Any, message: str) -> None:
    with pytest.raises(DualfuseError, match=message):
        changed(tiny, **{field: value})


def test_values_of_other_types_that_fit_are_accepted(tiny: Recipe) -> None:
    made = changed(tiny, lr=1, grad_clip_norm=np.float64(0.5), augment=Augment(), train_only=("a",))
    assert changed(made, augment=None).optim.lr == 1


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", 1] = "a"


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...] = ()
    anything: Any = None
    unresolved: Missing = 3  # type: ignore[name-defined]  # noqa: F821


def test_nested_dataclasses_are_checked_and_unresolved_annotations_are_not() -> None:
    check_types(Outer((Inner(), Inner(1))))
    with pytest.raises(DualfuseError, match=r"inner\.kind is True; allowed are 'a', 1"):
        check_types(Outer((replace(Inner(), kind=True),)))
