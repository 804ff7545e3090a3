"""VQA accuracy against worked examples and the mean over groups of nine annotators."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualfuse.metrics.accuracy import Question
from dualfuse.metrics.vqa import (
    CONTRACTIONS,
    AnswerScore,
    accuracy,
    agreement,
    normalise,
    read_vocabulary,
    soft_scores,
    vocabulary,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Two dogs.", "2 dogs"),
        ("none", "0"),
        ("a an the", ""),
        ("yes/no", "yes no"),  # a mark between letters leaves a space
        ("yes, no", "yes no"),
        ("yes , no", "yes no"),
        ("black/ white/grey", "black whitegrey"),  # beside a space anywhere, it goes everywhere
        ("1,000", "1000"),  # digits on both sides of a comma: every mark goes without a space
        ("1,000-2,000 m", "10002000 m"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("3.5.", "3.5"),
        ("u.s.", "us"),
        ("5.a", "5a"),  # the tool means to keep a period after a digit, and does not
        ("." * 40, "." * 8),  # and takes 32 away at most
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("y'alld've", "y'all'd've"),
        ("ow's'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),  # the wrong way round
        ("Im", "im"),  # is in capitals in the tool's table, where texts are in small letters
        ("shes", "shes"),
        (" left\nright\tside ", "left right side"),
    ],
)
def test_normalised_answers(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def test_contractions() -> None:
    """Count the entries that the tool can match: its table without capitals, and without two that change nothing."""
    assert len(CONTRACTIONS) == 114
    assert all(normalise(word) == right for word, right in CONTRACTIONS.items())


@pytest.mark.parametrize("people", [2, 3, 7, 10])
def test_agreement_is_the_mean_over_leaving_one_out(people: int) -> None:
    for count in range(people + 1):
        gave = [True] * count + [False] * (people - count)
        groups = [gave[:one] + gave[one + 1 :] for one in range(people)]
        assert agreement(count, people) == pytest.approx(sum(min(1, sum(group) / 3) for group in groups) / people)
    assert agreement(1, 1) == 1.0


def test_soft_scores_of_ten_annotators() -> None:
    answers = ["Yes"] * 4 + ["yes."] + ["no"] * 3 + ["maybe"] + ["the cat"]
    assert soft_scores(answers) == pytest.approx({"yes": 1.0, "no": 0.9, "maybe": 0.3, "cat": 0.3})
    assert soft_scores(["a cat"]) == {"cat": 1.0}
    assert soft_scores([]) == {}


def test_official_accuracy() -> None:
    split = ["Two"] * 2 + ["3"] * 8
    assert accuracy("two", split) == accuracy("2", split) == pytest.approx(0.6)
    assert accuracy("three", split) == 1.0
    assert accuracy("four", split) == 0.0
    unanimous = ["two"] * 10
    assert accuracy("2", unanimous) == 0.0 and accuracy("two", unanimous) == 1.0  # not normalised
    assert accuracy("2", ["two"]) == 1.0


def test_accuracy_per_type() -> None:
    metric = AnswerScore()
    assert metric.result() == {}
    metric.add(Question("a", 1, "?", ("yes", "no"), "yes/no"), ("yes",))
    metric.add(Question("b", 2, "?", ("none",) * 10, "number"), ("0",))
    metric.add(Question("c", 3, "?", ("red",)), ("red",))
    half = agreement(1, 2)
    assert metric.result() == pytest.approx(
        {"accuracy": (half + 1) / 3, "accuracy/number": 0.0, "accuracy/yes/no": half, "score": (half + 2) / 3}
    )


def test_vocabulary_in_order_of_first_appearance(tmp_path: Path) -> None:
    most_common = ["rare", "No", *["yes", "no."] * 8, "a yes", "nine"]
    assert vocabulary(most_common) == ("no", "yes")
    assert vocabulary(most_common, at_least=1) == ("rare", "no", "yes", "9")
    file = tmp_path / "answers.txt"
    file.write_text("no\nyes\n\n", encoding="utf-8")
    assert read_vocabulary(file) == ("no", "yes")
    for content in ("", "no\nyes\nno\n"):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="distinct answers, one per line"):
            read_vocabulary(file)
