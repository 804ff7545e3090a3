"""The model card of a model folder: architecture, training data and settings, scores, and usage."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dualfuse import hub
from dualfuse.config import IS
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.notes import CALIBRATION, read_note
from dualfuse.evaluation.runner import Plan, format_metric
from dualfuse.files import MAX_JSON, read_bounded, read_json_object
from dualfuse.io import listing, write_text
from dualfuse.metrics.calibration import KEPT, Calibration
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.printable import code, json_line, markdown, percent, printable
from dualfuse.recipe import Recipe
from dualfuse.run_folder import is_checkpoint, run_of, trained_steps

CARD, START, CONVERSION, AVERAGE = "README.md", "start.json", "conversion.json", "average.json"
PAPERS = {"VLMo": "2111.02358", "BridgeTower": "2206.08657", "METER": "2111.02387"}
SHOWN = 12  # entries of a list, before "and N more"
LABELS = {"itc_weight": "ITC", "itm_weight": "ITM", "mlm_weight": "MLM"}
TO_FILL = "*to be filled in*"


@dataclass(frozen=True)
class Scores:
    """The metrics that ``dualfuse evaluate --out`` wrote, and the command."""

    metrics: Mapping[str, float]
    command: str

    @staticmethod
    def read(path: Path, command: str) -> Scores:
        """Read the JSON file; raises ``DualfuseError`` if it is not an object of numbers."""
        numbers = {name: value for name, value in read_json_object(path).items() if isinstance(value, int | float)}
        if len(numbers) < len(read_json_object(path)):
            raise DualfuseError(f"{path} is not an object of numbers, as dualfuse evaluate --out writes it")
        return Scores(numbers, command)


def write_card(folder: Path, scores: Scores | None = None, licence: str = "") -> Path:
    """Write README.md into a model folder, and return its path; raises ``DualfuseError`` if it was edited by hand."""
    path = folder / CARD
    if path.exists() and not _is_generated(read_bounded(path, MAX_JSON).decode()):
        raise DualfuseError(f"{path} was edited by hand and is kept; move it away to write a new one")
    text = card(folder, scores, licence)
    write_text(path, f"{text}\n{_mark(text)}")
    return path


def card(folder: Path, scores: Scores | None = None, licence: str = "") -> str:
    """Return the card of a model folder in Markdown, with the front matter of the Hugging Face hub.

    ``licence`` is an identifier of the hub, such as apache-2.0. Absolute paths are shortened, because cards are
    published. Raises ``DualfuseError`` for a folder without a model.
    """
    recipe = hub.read_recipe(folder)
    parts = (
        _front_matter(recipe, licence),
        f"# {markdown(recipe.name)}\n\n{_sentence(folder, recipe)}",
        "## Model\n\n" + _table(_model(folder, recipe)),
        "## Training\n\n" + _training(folder, recipe),
        "## Scores\n\n" + _scores(recipe, scores),
        *_probabilities(folder),
        "## Use\n\n" + _use(recipe),
        f"## Licence\n\n- Weights: {markdown(licence) or TO_FILL}\n- Images and texts it was trained on: {TO_FILL}\n"
        f"- Weights it started from: {_origins(folder) or (TO_FILL if _origin(folder) else 'none')}",
        f"## Intended use and limits\n\n{TO_FILL}",
    )
    return "\n\n".join(parts) + "\n"


def _front_matter(recipe: Recipe, licence: str) -> str:
    pipeline = [f"pipeline_tag: {recipe.task.pipeline_tag}"] if recipe.task.pipeline_tag else []
    tags = ("dualfuse", "vision-language", _architecture(recipe).lower(), _kind(recipe.task).lower())
    lines = [
        "---",
        "library_name: dualfuse",
        *pipeline,
        f"license: {json_line(licence) if licence else 'unknown  # to be filled in'}",
        "tags:",
        *(f"- {tag}" for tag in dict.fromkeys(tags)),
        "---",
    ]
    return "\n".join(lines)


def _sentence(folder: Path, recipe: Recipe) -> str:
    name = _architecture(recipe)
    paper = f" ([arXiv {PAPERS[name]}](https://arxiv.org/abs/{PAPERS[name]}))" if name in PAPERS else ""
    millions = f"{_parameters(folder) / 1e6:,.1f}"
    return f"{name}{paper} of {millions} million parameters, trained for `{_kind(recipe.task)}` with dualfuse."


def _model(folder: Path, recipe: Recipe) -> dict[str, str]:
    height, width = recipe.data.image_size
    text = hub.with_tokenizer(recipe, folder).data.text_transform
    return {
        "architecture": _architecture(recipe),
        "parameters": f"{_parameters(folder):,}, heads included",
        "images": f"{height} x {width} pixels; {_values(recipe.data.preprocess)}",
        "texts": f"at most {text.length} tokens; vocabulary of {text.vocab_size:,}",
        "settings": _values(recipe.model),
    }


def _training(folder: Path, recipe: Recipe) -> str:
    if (folder / CONVERSION).is_file():
        return f"Converted from {code(_public(_origin(folder)))}; `{CONVERSION}` accounts for every tensor."
    stages = _stages(folder)
    done = trained_steps(folder)
    steps = [f"{stage.run.steps:,}" for stage in stages]
    if done is not None and done != stages[-1].run.steps:
        steps[-1] = f"{done:,} of {steps[-1]}"
    lines = ["| stage | task | steps | batch size | data |", "|---|---|---:|---:|---|"]
    lines += [
        f"| {markdown(stage.name)} | {_kind(stage.task)} | {count} | {stage.data.batch_size:,} | {_sources(stage)} |"
        for stage, count in zip(stages, steps, strict=True)
    ]
    first = stages[0]
    start = code(_public(first.start_from)) if first.start_from else "random weights"
    last = {
        "task": _values(recipe.task),
        "optimizer": f"AdamW; {_values(recipe.optim)}",
        "run": _values(recipe.run),
        "augmentation": _values(recipe.data.augment) if recipe.data.augment else "none",
    }
    if recipe.train_only:
        last["trained parameters"] = listing(map(markdown, recipe.train_only), SHOWN)
    if (folder / AVERAGE).is_file():
        start += f". Its weights are the mean of those of the models in `{AVERAGE}`"
    return f"It started from {start}.\n\n" + "\n".join(lines) + "\n\nThe last stage:\n\n" + _table(last)


def _stages(folder: Path) -> list[Recipe]:
    """Return the recipes that led to a model, in order, as far back as their folders still exist."""
    recipes: list[Recipe] = []
    visited: set[Path] = set()
    while folder.resolve() not in visited:
        visited.add(folder.resolve())
        recipes.insert(0, hub.read_recipe(folder))
        origin = Path(_origin(folder) or folder)
        folder = origin if is_checkpoint(origin) or ((origin / hub.CONFIG).is_file() and _is_ours(origin)) else folder
    return recipes


def _origin(folder: Path) -> str:
    """Return what a model was trained or converted from, from the reports in or beside its folder; empty if unknown."""
    run = run_of(folder) if is_checkpoint(folder) else folder.absolute().parent
    for report in (folder / CONVERSION, folder / START, run / START):
        if report.is_file():
            return str(read_json_object(report).get("source", ""))
    return ""


def _origins(folder: Path) -> str:
    """Return the licences and origins of the weights that a model started from, as a nested list; empty if unknown."""
    lines = [f"  - {code(name)}: {markdown(text)}" for name, text in hub.read_origins(folder).items()]
    return "".join(f"\n{line}" for line in lines)


def _is_ours(folder: Path) -> bool:
    return IS in read_json_object(folder / hub.CONFIG)


def _sources(recipe: Recipe) -> str:
    names = [code(_public(path)) for path in recipe.data.train]
    if recipe.data.weights:
        names = [f"{name} ({weight:g})" for name, weight in zip(names, recipe.data.weights, strict=True)]
    return listing(names, SHOWN) if names else "not recorded"


def _scores(recipe: Recipe, scores: Scores | None) -> str:
    if scores is None:
        return (
            "None yet. `dualfuse evaluate MODEL DATA --out scores.json` writes them, and "
            "`dualfuse card MODEL --scores scores.json --command '...'` adds them here."
        )
    declared = recipe.task.metrics(Plan(rerank=1, all_metrics=True))
    rows = {code(name): format_metric(declared, name, value) for name, value in scores.metrics.items()}
    command = printable(scores.command, "\n").replace("```", "'''")
    return f"Computed by\n\n```bash\n{command or TO_FILL}\n```\n\n" + _table(rows)


def _probabilities(folder: Path) -> tuple[str, ...]:
    """Return the section about probabilities of a calibrated model."""
    stored = read_note(folder / CALIBRATION, Calibration)
    if stored is None:
        return ()
    fitted, mix = stored.match or stored.cosine, stored.mix
    source = "the score of the fusion encoder" if stored.match else "the cosine"
    threshold = fitted.threshold(KEPT)
    rows = {
        "calibrated on": f"{stored.texts:,} texts, {stored.images:,} images; seed {stored.seed}; "
        f"data {code(stored.data)}",
        "probability of a given pair": f"assumes {percent(mix.right)} right, {100 * mix.random:.2f} % random wrong and "
        f"{100 * mix.hard:.2f} % hard negative pairs (among the {mix.nearest} nearest images of the text)",
        "expected calibration error, on that set": f"{fitted.pair_error:.3f} for given pairs, "
        f"{fitted.hit_error:.3f} for the first {mix.nearest} hits of searches",
        "95 % of right pairs": f"have at least {percent(fitted.pair.probability(threshold))}; of hits, at least "
        f"{percent(fitted.hit.probability(threshold))}",
    }
    return (f"## Probabilities\n\nThey come from {source}, by Platt scaling.\n\n" + _table(rows),)


def _use(recipe: Recipe) -> str:
    line = recipe.task.example
    names = "load, predict" if line else "load"
    lines = [f"from dualfuse import {names}", "", 'model = load("FOLDER or OWNER/NAME")', *([line] if line else [])]
    return "\n".join(["```python", *lines, "```"])


def _parameters(folder: Path) -> int:
    if is_checkpoint(folder):
        return sum(tensor.numel() for tensor in hub.read_tensors(folder).values())
    try:
        with safe_open(folder / hub.WEIGHTS, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise DualfuseError(
            f"{folder / hub.WEIGHTS} is missing, truncated or not a safetensors file: {error}"
        ) from error


def _architecture(recipe: Recipe) -> str:
    has_no_bridge = isinstance(recipe.model, BridgeTowerConfig) and recipe.model.bridge == "none"
    return "METER" if has_no_bridge else _kind(recipe.model)


def _kind(config: object) -> str:
    return type(config).__name__.removesuffix("Config")


def _values(config: object) -> str:
    """Return the fields of a config as "name value, name value", and those of nested configs in parentheses."""
    texts = []
    for each in fields(config) if is_dataclass(config) else ():
        name, value = LABELS.get(each.name, each.name), getattr(config, each.name)
        texts.append(f"{name} ({_values(value)})" if is_dataclass(value) else f"{name} {_short(value)}")
    return ", ".join(texts)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"{len(value):,} names" if len(value) > SHOWN else f"({', '.join(map(markdown, map(str, value)))})"
    return markdown(repr(value)) if isinstance(value, str) else str(value)


def _public(path: str) -> str:
    """Return a path without the private folders above its last two parts."""
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() or path.startswith(("~", "..")) else path


def _table(rows: Mapping[str, str]) -> str:
    cells = [re.sub(r"(?<!\\)\|", r"\\|", cell) for row in rows.items() for cell in row]
    lines = (f"| {name} | {value} |" for name, value in zip(cells[::2], cells[1::2], strict=True))
    return "\n".join(["| | |", "|---|---|", *lines])


def _mark(text: str) -> str:
    return f"<!-- written by dualfuse card: {sha256(text.encode()).hexdigest()} -->\n"


def _is_generated(text: str) -> bool:
    """Return whether a card was generated and not edited since."""
    content, _, mark = text.rstrip("\n").rpartition("\n")
    return f"{mark}\n" == _mark(content)
