"""What the cheaper recipes buy: learning curves of the demo's second stage against processor seconds.

Every variant starts from the same contrast stage, of the runs that bench/demo_seeds.py left behind, reads the same
pairs, and stops after as many processor seconds, reading included and judging left out; the learning rate falls to zero
over those. Runs that are finished are not repeated:
``python bench/variants.py --demos runs/scratch-seeds --out runs/variants --seeds 1 2 3
--plot docs/images/variants.png``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.retrieval import evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.recipe import Recipe
from dualfuse.recipes.small_pairs import demo
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig
from dualfuse.tasks.pretrain.pairs_evaluation import evaluate_pairs
from dualfuse.training.dataloader import training_dataloader
from dualfuse.training.init_from import init_from
from dualfuse.training.loop import seed_step
from dualfuse.training.memory import keep_big_blocks
from dualfuse.training.optim import build_optimizer, clip_grad_norm, learning_rate, set_learning_rate

VARIANTS: Mapping[str, Callable[[PairsConfig], PairsConfig]] = {
    "published": lambda task: replace(task, itm_on_masked_text=False, negatives_per_pair=2),
    "match sees masked": lambda task: replace(task, negatives_per_pair=2),
    "and one negative": lambda task: task,
    "and half the patches": lambda task: replace(task, patch_dropout=0.5),
}
"""Each adds one field to the one before; all contrast the plain view, with negatives drawn at random (the demo's)."""
COLOURS = ("#333333", "#1f5fa8", "#c2571a", "#2f8f4e")
PANELS = {
    "text_to_image/R@10": "Text to image, R@10",
    "image_to_text/R@10": "Image to text, R@10",
    "match": "Matching, right and random pairs",
    "mlm/accuracy": "Masked words",
}
SCHEDULE = 1000  # parts that the learning rate's fall is divided in

Point = dict[str, float]
"""What one judgement found, in percent, after ``seconds`` and ``pairs``."""


@dataclass(frozen=True)
class Options:
    """What is run, and where."""

    demos: Path = Path("runs/scratch-seeds")
    """What bench/demo_seeds.py wrote: for every seed the data, and the model after its first stage."""
    out: Path = Path("runs/variants")
    seeds: tuple[int, ...] = (1, 2, 3)
    seconds: float = 90.0
    """Of the processor, for learning."""
    every: float = 15.0
    """Of these between two judgements."""
    plot: Path | None = None
    """An image to draw."""


@dataclass
class Learner:
    """One variant with one seed, and how long it has trained."""

    recipe: Recipe
    task: Pairs
    optimizer: torch.optim.Optimizer
    seconds: float = 0.0
    steps: int = 0

    @classmethod
    def of(cls, recipe: Recipe, out: Path) -> Learner:
        """Starts from the contrast stage."""
        torch.manual_seed(recipe.run.seed)
        task = recipe.task.build(recipe.model.build())
        init_from(task, recipe, recipe.start_from, out)
        return cls(recipe, task, build_optimizer(task, recipe.optim))

    def learn(self, whole: float, points: Sequence[float]) -> list[Point]:
        """Learn for ``whole`` seconds, and judges when each of ``points`` has passed."""
        found, stream = [self.evaluated()], training_dataloader(self.recipe, start=0)
        for point in points:
            while self.seconds < point:
                before = time.process_time()
                share = min(1.0, self.seconds / whole)
                set_learning_rate(self.optimizer, learning_rate(self.recipe.optim, int(SCHEDULE * share), SCHEDULE))
                self.step(next(stream).batch)
                self.seconds += time.process_time() - before
            found.append(self.evaluated())
        return found

    def step(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Learn from one batch."""
        seed_step(self.recipe.run, self.steps, 0)
        self.task.train()(batch).loss.backward()
        clip_grad_norm(self.task, self.recipe.optim.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def evaluated(self) -> Point:
        """Evaluate on the validation images."""
        data, plan = self.recipe.data, Plan(num_workers=0)
        processor = replace(data.processor(), image=replace(data.image_transform, augment=None))
        shards, task = Shards.open(data.validation), self.task.eval()
        found = {
            **evaluate_retrieval(task, EvaluationData(shards, processor), plan).metrics,
            **evaluate_pairs(task, EvaluationData(shards, processor), plan).metrics,
        }
        found["match"] = (found["itm/positive"] + found["itm/random_negative"]) / 2
        percent = {name: 100 * value for name, value in found.items()}
        return percent | {"seconds": self.seconds, "pairs": self.steps * data.batch_size}


def curve(options: Options, variant: str, seed: int) -> list[Point]:
    """Return the curve of one run, or reads what an earlier one found."""
    folder = options.out / f"{variant.replace(' ', '-')}-{seed}"
    kept = folder / "curve.json"
    if not kept.exists():
        points = [options.every * n for n in range(1, 1 + round(options.seconds / options.every))]
        learner = Learner.of(recipe_of(options.demos / f"seed-{seed}", variant, seed), folder)
        kept.write_text(json.dumps(learner.learn(options.seconds, points), indent=1) + "\n")
    return json.loads(kept.read_text())


def recipe_of(demo_run: Path, variant: str, seed: int) -> Recipe:
    """Return the demo's second stage with one variant of its task."""
    _, joint = demo()
    train, validation = str(demo_run / "data" / "train-*.tar"), str(demo_run / "data" / "val-*.tar")
    return replace(
        joint,
        task=VARIANTS[variant](joint.task),
        data=replace(joint.data, train=(train,), validation=validation, num_workers=0),
        optim=replace(joint.optim, warmup=0.05),
        run=replace(joint.run, seed=seed),
        start_from=str(demo_run / "contrast" / "final"),
    )


def mean(curves: Sequence[Sequence[Point]], at: int, name: str) -> float:
    """Return the mean over the seeds of one number of the judgement ``at``."""
    return statistics.mean(points[at][name] for points in curves)


def table(found: Mapping[str, Sequence[Sequence[Point]]]) -> str:
    """Return a Markdown table of what each variant reached, half way and at the end."""
    lines = [
        f"| | pairs | {' | '.join(PANELS.values())} | right above hardest |",
        f"|---|{'---:|' * (2 + len(PANELS))}",
    ]
    for variant, curves in found.items():
        last = len(curves[0]) - 1
        cells = [f"{mean(curves, last, 'pairs'):,.0f}"]
        for name in (*PANELS, "itm/positive_above_hard"):
            each = " / ".join(f"{points[last][name]:.1f}" for points in curves)
            cells.append(f"{mean(curves, last // 2, name):.1f} → **{mean(curves, last, name):.1f}** ({each})")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: Mapping[str, Sequence[Sequence[Point]]], image: Path) -> None:
    """Draw a panel for each number: thin lines are seeds, thick ones their mean."""
    figure = Figure((11, 3.6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        assert isinstance(axes, Axes)
        for colour, (variant, curves) in zip(COLOURS, found.items(), strict=True):
            for points in curves:
                seconds, values = ([point[key] for point in points] for key in ("seconds", name))
                axes.plot(seconds, values, color=colour, linewidth=0.6, alpha=0.5)
            number = range(len(curves[0]))
            seconds, values = ([mean(curves, at, key) for at in number] for key in ("seconds", name))
            axes.plot(seconds, values, color=colour, linewidth=2, label=variant)
        axes.set_title(title, fontsize=9)
        axes.set(xlabel="processor seconds", xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    figure.axes[0].set_ylabel("validation, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(image, dpi=130, metadata={"Software": ""})


def main() -> None:
    """Run what is missing, prints the table, and draws."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    keep_big_blocks()
    found: dict[str, list[list[Point]]] = {variant: [] for variant in VARIANTS}
    for seed in options.seeds:  # all variants of a seed first: an interrupted comparison is a fair one
        for variant in VARIANTS:
            found[variant].append(curve(options, variant, seed))
    print(table(found))
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
