"""Calibration on one set, measured on another, and answers to queries that fit nothing in it.

``python bench/calibration.py runs/starter-1/best runs/starter-2/best runs/starter-3/best`` calibrates each model on the
validation images of examples/openpics-mini, and measures it on the test images. The model folders are not changed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from dualfuse import load
from dualfuse.evaluation.calibration import calibrate_model, measure_calibration
from dualfuse.evaluation.runner import Plan, open_data
from dualfuse.hub import LoadedModel
from dualfuse.search.index import Index, fingerprint
from dualfuse.search.stores.exact import ExactStore

DATA = "examples/openpics-mini/*-{}-*.tar"
ADJECTIVES = [
    "quarterly",
    "fiscal",
    "jurisdictional",
    "hypothetical",
    "retroactive",
    "epistemic",
    "procedural",
    "contractual",
    "statutory",
    "amortized",
    "deductible",
    "ontological",
    "algebraic",
    "asymptotic",
    "stochastic",
    "recursive",
    "normative",
    "semantic",
    "provisional",
    "actuarial",
]
NOUNS = [
    "liability",
    "amortization",
    "jurisprudence",
    "inflation",
    "subpoena",
    "derivative",
    "hypothesis",
    "compliance",
    "lemma",
    "procurement",
    "arbitration",
    "indemnity",
    "curriculum",
    "epistemology",
    "escrow",
    "deduction",
    "syntax",
    "deferral",
    "mortgage",
    "audit",
    "bureaucracy",
    "eigenvalue",
    "royalty",
    "deficit",
    "covariance",
    "grammar",
    "litigation",
    "premium",
    "dividend",
    "theorem",
]
AT = 0.5


def nonsense(number: int, seed: int) -> list[str]:
    """Return phrases about nothing that a drawing shows, such as "fiscal lemma of escrow"."""
    rng, phrases = np.random.default_rng(seed), set[str]()
    while len(phrases) < number:
        noun = str(rng.choice(NOUNS)) if rng.random() < 0.5 else " of ".join(rng.choice(NOUNS, 2))
        phrases.add(f"{rng.choice(ADJECTIVES)} {noun}")
    return sorted(phrases)


def empty_answers(model: LoadedModel, data: str, queries: list[str], rerank: int) -> float:
    """Return the share of queries to which a search at a least probability of 0.5 answers nothing."""
    with tempfile.TemporaryDirectory() as folder:
        store = ExactStore.open(fingerprint(model), (Path(folder) / "index.safetensors",))
        index = Index.build(model, data, store=store, num_workers=1)
        return float(np.mean([not index.search(each, rerank=rerank, min_probability=AT) for each in queries]))


def main() -> None:
    """Print one row per model and kind of score, and mean and standard deviation of the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--validation", default=DATA.format("val"))
    parser.add_argument("--test", default=DATA.format("test"))
    parser.add_argument("--queries", type=int, default=200)
    chosen = parser.parse_args()
    rows: list[dict[str, float]] = []
    for name in chosen.models:
        model, plan = load(name), Plan(num_workers=0)
        calibrate_model(model, chosen.validation, plan)
        row = dict(measure_calibration(model.task, open_data(model, chosen.test), plan).metrics)
        stored = model.task.calibration
        assert stored is not None  # just made
        row["right_at_half/cosine"] = stored.cosine.kept(stored.cosine.hit.score(AT))
        queries = nonsense(chosen.queries, seed=0)
        row["empty/cosine"] = empty_answers(model, chosen.test, queries, rerank=0)
        if model.task.can_match:
            row["empty/match"] = empty_answers(model, chosen.test, queries, rerank=16)
        rows.append(row)
        print(name, {key: round(value, 3) for key, value in row.items()}, flush=True)
    for key in rows[0]:
        values = [row[key] for row in rows]
        print(f"{key:32} {np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}")


if __name__ == "__main__":
    main()
