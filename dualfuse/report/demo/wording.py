"""Sentences about the results, computed from the numbers; they also report what did not help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
    """Return the training time of all stages."""
    return sum(stage.seconds for stage in stages)


def summary(results: DemoResults) -> tuple[str, ...]:
    """Return sentences: what was trained, the results, and the comparison with the control, if there is one."""
    retrieval, machine = results.retrieval, dict(results.machine)
    trained = (
        f"In {duration(total_seconds(results.joint))} on {machine['device']} ({machine['threads']} CPU threads) a "
        f"model of {results.parameters / 1e6:.1f} million parameters trained from {results.train_images:,} images and "
        "their captions, starting from random weights."
    )
    result = (
        f"Among {retrieval.images} unseen test images its dual encoder ranks the image of a caption first for "
        f"{percent(retrieval.joint.text_to_image[0])} of the captions; after its fusion encoder has re-ranked the "
        f"first {retrieval.candidates}, for {percent(retrieval.reranked.text_to_image[0])}; "
        f"chance is {percent(retrieval.chance.text_to_image[0])}."
    )
    return tuple(filter(None, (trained, result, _control(results), _matching(dict(results.fusion)))))


def _control(results: DemoResults) -> str:
    alone = results.retrieval.itc_only
    if alone is None:
        return ""
    took = duration(total_seconds(results.control))
    return f"Training with ITC only for {took} reaches {percent(alone.text_to_image[0])}."


def _matching(fusion: Mapping[str, float]) -> str:
    if "itm/positive_above_hard" not in fusion:
        return ""
    return (
        f"The ITM head accepts {percent(fusion['itm/positive'])} of the matching pairs and rejects "
        f"{percent(fusion['itm/random_negative'])} of the random and {percent(fusion['itm/hard_negative'])} of the "
        "hard negatives."
    )


def verdicts(retrieval: Retrieval) -> tuple[tuple[str, str], ...]:
    """Return (question, answer) for each direction: did re-ranking help, and did ITM and MLM?"""
    ways = (
        ("text_to_image", "finding images by caption", retrieval.texts),
        ("image_to_text", "finding captions by image", retrieval.images),
    )
    answers = []
    for way, what, queries in ways:
        joint, after = (getattr(recall, way) for recall in (retrieval.joint, retrieval.reranked))
        answers.append((f"Did re-ranking help in {what}?", compare(joint, after, queries)))
        if retrieval.itc_only is not None:
            alone = getattr(retrieval.itc_only, way)
            answers.append((f"Is the joint model's dual encoder better at {what}?", compare(alone, joint, queries)))
    return tuple(answers)


def compare(before: Sequence[float], after: Sequence[float], queries: int) -> str:
    """Return a sentence on the change of recall, and on whether that of R@1 is larger than its random variation."""
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
