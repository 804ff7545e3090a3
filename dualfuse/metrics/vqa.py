"""Short answers by people: made alike, scored by how many agree, and chosen for a vocabulary.

The rules are those of the evaluation tool of VQA (visualqa.org), with its slips, because scores are compared with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.metrics.accuracy import Question

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = ("a", "an", "the")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(WORDS)} | {"none": "0"}
SHORTENED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
"""Words with apostrophes. Those of "I" never match in the tool, which has them in capitals."""
REPAIRED = {
    word[:place] + word[place + 1 :]: word
    for word in SHORTENED.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the tool has this one the wrong way round
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")  # meant to spare those after a digit, too; the tool does not
MOST_PERIODS = 32  # re.UNICODE stands where the tool's call takes a count
COMMON = 9  # how often an answer of VQAv2's vocabulary was the most common one, at least


def normalise(answer: str) -> str:
    """Return an answer in the form that is compared: small letters, no articles, digits for numbers, no punctuation."""
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    plain = answer
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        plain = plain.replace(mark, "" if beside_space or COMMA_IN_NUMBER.search(answer) else " ")
    plain = PERIOD.sub("", plain, count=MOST_PERIODS)
    words = (NUMBERS.get(word, word) for word in plain.lower().split())
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)


def agreement(count: int, people: int) -> float:
    """Return the score of an answer that ``count`` of ``people`` gave: the mean over all groups with one left out.

    A third of a point for each of the others who gave it, at most one point; with ten people 0, 0.3, 0.6, 0.9, and 1
    from four on. The answer of one person alone counts in full.
    """
    if people == 1:
        return float(count)
    return (count * min(1.0, (count - 1) / 3) + (people - count) * min(1.0, count / 3)) / people


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Return every normalised answer with its score."""
    counts = Counter(map(normalise, answers))
    return {answer: agreement(count, len(answers)) for answer, count in counts.items()}


def accuracy(answer: str, truth: Sequence[str]) -> float:
    """Return the official accuracy of one answer; where several people all agree the tool compares it as it is."""
    if len(truth) > 1 and len(set(truth)) == 1:
        return agreement(len(truth) if answer.strip() == truth[0].strip() else 0, len(truth))
    return soft_scores(truth).get(normalise(answer), 0.0)


def vocabulary(most_common: Iterable[str], at_least: int = COMMON) -> tuple[str, ...]:
    """Return the answers to choose from, in order of first appearance, of each question's most common answer.

    With those of VQAv2's questions for training and then validation: the 3,129 of VLMo, METER and BridgeTower.
    """
    counts = Counter(map(normalise, most_common))
    return tuple(answer for answer, count in counts.items() if count >= at_least)


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Return the answers in a text file, one a line; ``DualfuseError`` if there are none or two are the same."""
    answers = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line)
    if not answers or len(set(answers)) < len(answers):
        twice = [answer for answer, count in Counter(answers).items() if count > 1]
        raise DualfuseError(
            f"{path} should hold different answers, one a line; it holds {len(answers)}, twice: {twice}"
        )
    return answers


class AnswerScore:
    """The official accuracy, over all questions and over those of each kind; and the score that training sees."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._scores: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    def add(self, asked: Question, answers: Sequence[str]) -> None:
        """Count the best answer."""
        answer = answers[0]
        official = accuracy(answer, asked.target)
        scores = {"accuracy": official, "score": soft_scores(asked.target).get(normalise(answer), 0.0)}
        for name, score in (scores | ({f"accuracy/{asked.kind}": official} if asked.kind else {})).items():
            self._scores[name] = self._scores.get(name, 0.0) + score
            self._counts[name] += 1

    def result(self) -> dict[str, float]:
        """Return "accuracy", "accuracy/KIND" of kinds such as yes/no, number and other, and "score"."""
        return {name: self._scores[name] / self._counts[name] for name in sorted(self._scores)}
