"""Sentences about the results, computed from the numbers: they say so when something did not help."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dualfuse.report.curves import History
from dualfuse.report.demo.results import DemoResults, Retrieval

AT = (1, 5, 10)


def percent(share: float) -> str:
    """Return "23.4%"."""
    return f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """Return "48 s" or "12 min 5 s" or "1 h 2 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def total_seconds(stages: Sequence[History]) -> float:
    """Return how long all stages took together."""
    return sum(stage.seconds for stage in stages)


def summary(results: DemoResults) -> tuple[str, str, str]:
    """Return what happened, what was reached, and what the control says, in a sentence each."""
    found, machine = results.retrieval, results.machine
    fusion = {number.name: number.value for number in results.fusion}
    happened = (
        f"In {duration(total_seconds(results.joint))} on {machine.device} ({machine.threads} CPU threads) a model of "
        f"{results.parameters / 1e6:.1f} million parameters trained from {results.train_images:,} images and their "
        f"captions, starting from random weights."
    )
    reached = (
        f"Among {found.images} test images it had never seen it puts the right one first for "
        f"{percent(found.joint.text_to_image[0])} of the captions as a dual encoder, and for "
        f"{percent(found.reranked.text_to_image[0])} once its fusion path has re-ranked the best {found.candidates}; "
        f"chance is {percent(found.chance.text_to_image[0])}."
    )
    evaluated = (
        f"Contrast alone for {duration(total_seconds(results.control))} finds "
        f"{percent(found.contrast_only.text_to_image[0])}"
    )
    if "itm/positive_above_hard" in fusion:
        evaluated += (
            f"; the match head accepts {percent(fusion['itm/positive'])} of the right pairs and rejects "
            f"{percent(fusion['itm/random_negative'])} of random and {percent(fusion['itm/hard_negative'])} of the hardest wrong ones"
        )
    return happened, reached, evaluated + "."


def verdicts(found: Retrieval) -> tuple[tuple[str, str], ...]:
    """Return whether re-ranking, and training all objectives, helped: (question, answer) each way."""
    ways = (
        ("text_to_image", "finding images by caption", found.texts),
        ("image_to_text", "finding captions by image", found.images),
    )
    answers = []
    for way, what, queries in ways:
        alone, joint, after = (getattr(one, way) for one in (found.contrast_only, found.joint, found.reranked))
        answers.append((f"Did re-ranking help in {what}?", compare(joint, after, queries)))
        answers.append((f"Is the joint model's dual encoder better at {what}?", compare(alone, joint, queries)))
    return tuple(answers)


def compare(before: Sequence[float], after: Sequence[float], queries: int) -> str:
    """Return in words whether recall at 1, 5, 10 rose, and whether R@1 did by more than chance alone may do."""
    gain = after[0] - before[0]
    spread = 2 * math.sqrt((before[0] * (1 - before[0]) + after[0] * (1 - after[0])) / queries)
    if round(gain * queries) == 0:
        answer = "No difference at R@1"
    elif abs(gain) <= spread:
        answer = f"Not clearly; {'better' if gain > 0 else 'worse'} by less than {queries} queries can tell apart"
    else:
        answer = "Yes" if gain > 0 else "No, it made it worse"
    changes = ", ".join(
        f"R@{k} {percent(old)} to {percent(new)} ({100 * (new - old):+.1f})"
        for k, old, new in zip(AT, before, after, strict=True)
    )
    return f"{answer}: {changes}."
