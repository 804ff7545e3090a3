"""VQA accuracy: normalisation of answers, agreement of annotators, and the answer vocabulary.

The rules are those of VQA's evaluation tool (visualqa.org), including its mistakes, for comparable scores.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dualfuse.data.text.decode import read_lines
from dualfuse.errors import DualfuseError
from dualfuse.metrics.accuracy import Metric, Question

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = ("a", "an", "the")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(WORDS)} | {"none": "0"}
WITH_APOSTROPHE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
"""Contractions. Those of "I" never match in the tool, which lists them in capitals."""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in WITH_APOSTROPHE.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # reversed in the tool
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")  # the tool also removes those after a digit
MOST_PERIODS = 32  # the tool passes re.UNICODE as the count
COMMON = 9  # least questions of which an answer of VQAv2's vocabulary is the most common one


def normalise(answer: str) -> str:
    """Return an answer in lower case, without articles and punctuation, with digits for number words."""
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    plain = answer
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        plain = plain.replace(mark, "" if beside_space or COMMA_IN_NUMBER.search(answer) else " ")
    plain = PERIOD.sub("", plain, count=MOST_PERIODS)
    words = (NUMBERS.get(word, word) for word in plain.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def agreement(count: int, people: int) -> float:
    """Return the score of an answer that ``count`` of ``people`` annotators gave: the mean over leaving each one out.

    One third per remaining annotator who gave it, at most 1; with ten annotators 0, 0.3, 0.6, 0.9, and 1 from four on.
    The answer of a single annotator scores 1.
    """
    if people == 1:
        return float(count)
    return (count * min(1.0, (count - 1) / 3) + (people - count) * min(1.0, count / 3)) / people


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Return the score of every normalised answer."""
    counts = Counter(map(normalise, answers))
    return {answer: agreement(count, len(answers)) for answer, count in counts.items()}


def accuracy(answer: str, target: Sequence[str]) -> float:
    """Return the official accuracy of an answer; where all annotators agree, the tool compares without normalising."""
    if len(target) > 1 and len(set(target)) == 1:
        return agreement(len(target) if answer.strip() == target[0].strip() else 0, len(target))
    return soft_scores(target).get(normalise(answer), 0.0)


def vocabulary(most_common: Iterable[str], at_least: int = COMMON) -> tuple[str, ...]:
    """Return the frequent answers among each question's most common one, in order of first appearance.

    For VQAv2's training and then validation questions: the 3,129 answers of VLMo, METER and BridgeTower.
    """
    counts = Counter(map(normalise, most_common))
    return tuple(answer for answer, count in counts.items() if count >= at_least)


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file; DualfuseError if there are none, or duplicates."""
    answers = tuple(read_lines(path))
    if not answers or len(set(answers)) < len(answers):
        repeated = [answer for answer, count in Counter(answers).items() if count > 1]
        raise DualfuseError(
            f"{path} should hold distinct answers, one per line; it holds {len(answers)}, repeated: {repeated}"
        )
    return answers


class AnswerScore(Metric):
    """The official "accuracy", over all questions and per type ("accuracy/TYPE"); and the soft "score" of training."""

    def scores(self, question: Question, answers: Sequence[str]) -> dict[str, float]:
        """Compare the best answer; types are such as yes/no, number and other."""
        official = accuracy(answers[0], question.target)
        scores = {"accuracy": official, "score": soft_scores(question.target).get(normalise(answers[0]), 0.0)}
        return scores | ({f"accuracy/{question.kind}": official} if question.kind else {})
