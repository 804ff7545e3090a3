"""``dualfuse evaluate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Flags, Force, Model, ZeroShot, check_drawing, check_new
from dualfuse.errors import DualfuseError
from dualfuse.io import write_json

if TYPE_CHECKING:
    from dualfuse.evaluation.composition_result import CompositionResult
    from dualfuse.evaluation.runner import EvaluationResult, Plan
    from dualfuse.hub import LoadedModel

EXAMPLES = """
dualfuse evaluate runs/demo/starter/best 'examples/openpics-mini/*-test-*.tar'
dualfuse evaluate runs/vqa/final 'data/vqa-test-*.tar' --answers answers.json --out scores.json
dualfuse evaluate runs/ade20k/final 'data/ade20k-val-*.tar' --scales 0.5 0.75 1 1.25 1.5 1.75 --flip
dualfuse evaluate runs/demo/starter/best 'data/flowers-test-*.tar' --zero-shot data/flowers --templates clip
dualfuse evaluate runs/demo/starter/best 'data/pairs-val-*.tar' --calibrate
dualfuse evaluate runs/demo/starter/best 'data/pairs-test-*.tar' --reliability reliability.png
dualfuse evaluate runs/scenes/hard/final --benchmark scenes
dualfuse evaluate runs/demo/starter/best downloads/sugar-crepe/data --benchmark sugarcrepe --images downloads/val2017
"""


@dataclass(frozen=True)
class Views:
    """Test-time augmentation of segmentation."""

    scales: tuple[float, ...] = ()
    """segmentation averages the probabilities of the image at these scales, such as 0.5 0.75 1 1.25 1.5 1.75"""
    flip: bool = False
    """segmentation also averages over the mirrored images"""


@dataclass(frozen=True)
class BenchmarkOptions:
    """Flags of ``dualfuse evaluate --benchmark``."""

    benchmark: Annotated[str, arg(metavar="NAME")] = ""
    """evaluate on a composition benchmark whose published files are in the folder DATA: winoground, aro, sugarcrepe,
    sugarcrepe++, negbench; or on scenes, which are drawn without DATA; empty: off"""
    images: Annotated[Path | None, arg(metavar="DIR")] = None
    """with --benchmark: folder of the images; default: searched beside the files"""
    cases: int = 500
    """with --benchmark scenes: cases per category"""
    seed: int = 0
    """with --benchmark scenes: seed of the drawings and captions"""


@dataclass(frozen=True)
class CalibrationOptions:
    """Flags of ``dualfuse evaluate`` about probabilities."""

    calibrate: bool = False
    """first calibrate the model on DATA, which it was not trained on: the model folder then says which probabilities
    its scores stand for, and whether search re-ranks by default"""
    reliability: Annotated[Path | None, arg(metavar="FILE")] = None
    """draw how often pairs of each probability are right, as .png or .jpg; needs a calibrated model"""


@dataclass(frozen=True)
class Options:
    """Flags of ``dualfuse evaluate``."""

    model: Model
    data: Annotated[Positional[str], arg(metavar="DATA")] = ""
    """shards to evaluate on, such as 'data/test-*.tar', or the folder of a benchmark"""
    rerank: int = 16
    """candidates per query that fusion re-ranks; 0: none"""
    batch_size: int = 64
    """images, texts or pairs per forward pass"""
    num_workers: int = 2
    """data loader processes; 0: load in this process"""
    views: Flags[Views] = field(default_factory=Views)
    exclude_broken: bool = False
    """skip and report unreadable samples instead of failing"""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """write the metrics to this json file"""
    answers: Annotated[Path | None, arg(metavar="FILE")] = None
    """write the result of each sample: answers or captions (.json in the format of VQAv2 or COCO, .csv in that of
    NLVR2, .jsonl with target, accuracy and loss), ranks of retrieval, losses, or margins of a benchmark's cases (.jsonl
    or .csv)"""
    save_image: Annotated[Path | None, arg(metavar="FILE")] = None
    """draw the reconstructions of a visual tokenizer, or the label maps of a segmenter"""
    zero: Flags[ZeroShot] = field(default_factory=ZeroShot)
    composition: Flags[BenchmarkOptions] = field(default_factory=BenchmarkOptions)
    calibration: Flags[CalibrationOptions] = field(default_factory=CalibrationOptions)
    force: Force = False


def run(options: Flags[Options]) -> None:
    """Evaluate a model on its training task.

    Image-text pairs: retrieval in both directions, by embeddings alone and re-ranked by fusion, ITM and MLM. Question
    answering and classification: accuracy. Captioning: CIDEr-D. Segmentation: mean IoU. With --zero-shot: top-1 and
    top-5 accuracy over the class names. With --benchmark: accuracy on true and false captions that differ in
    attributes, relations, counts, negation or word order, by the dual encoder, by the fusion encoder, and by both.
    """
    from dualfuse.evaluation.runner import Plan

    _check(options)
    drawings = [path for path in (options.save_image, options.calibration.reliability) if path]
    check_new(options.out, options.answers, *drawings, force=options.force)
    for path in drawings:
        check_drawing(path, options.data)
    plan = Plan(
        options.batch_size,
        options.rerank,
        options.num_workers,
        options.exclude_broken,
        scales=options.views.scales,
        flip=options.views.flip,
        answers=options.answers is not None,
        all_metrics=True,
    )
    evaluate = _evaluate_benchmark if options.composition.benchmark else _evaluate_task
    result = evaluate(options, plan)
    echo("\n".join(result.lines()))
    if options.out:
        write_json(options.out, result.metrics)
    if options.answers:
        result.write(options.answers)


def _check(options: Options) -> None:
    """Raise ``DualfuseError`` for options that contradict each other, and without data."""
    chosen = options.composition
    if chosen.benchmark and (options.zero.zero_shot or options.save_image or options.views != Views()):
        raise DualfuseError(
            "--benchmark cannot be combined with --zero-shot, --save-image, --scales or --flip; omit them"
        )
    if chosen.benchmark and options.calibration != CalibrationOptions():
        raise DualfuseError("--calibrate and --reliability are for pairs; omit them with --benchmark")
    if chosen.images and not chosen.benchmark:
        raise DualfuseError(f"--images {chosen.images} needs --benchmark NAME")
    if chosen.benchmark == "scenes" and options.data:
        raise DualfuseError(f"--benchmark scenes draws its images; omit {options.data}")
    if not options.data and chosen.benchmark != "scenes":
        what = f"the folder with the files of {chosen.benchmark}" if chosen.benchmark else "shards such as 'test-*.tar'"
        raise DualfuseError(f"there is no DATA; give {what} after the model")


def _evaluate_task(options: Options, plan: Plan) -> EvaluationResult:
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.evaluation.runner import check_outputs, check_test_augmentation, draw, evaluate
    from dualfuse.inference.zero_shot import with_zero_shot
    from dualfuse.training.memory import keep_big_blocks

    if options.calibration.calibrate:
        _noted_folder(options)  # raises before the model is loaded
    keep_big_blocks()
    loaded = with_zero_shot(load(options.model, device=dist.device()), options.zero.zero_shot, options.zero.templates)
    check_outputs(loaded.task, answers=options.answers, save_image=options.save_image)
    check_test_augmentation(loaded.task, plan)
    if options.calibration.calibrate:
        _calibrate(options, loaded, plan)
    result = evaluate(loaded, options.data, plan)
    if options.calibration.calibrate:
        _store_reranking(options, result, plan)
    if options.calibration.reliability:
        from dualfuse.report.reliability import save_reliability

        save_reliability(result.reliability, options.calibration.reliability)
    if options.save_image:
        draw(loaded, options.data, options.save_image)
    return result


def _noted_folder(options: Options) -> Path:
    """Return the folder that a calibration is stored in; DualfuseError if the model has none."""
    from dualfuse.convert.load import locate
    from dualfuse.run_folder import is_checkpoint

    given = Path(options.model)
    if not given.is_dir() or is_checkpoint(folder := locate(given)):
        raise DualfuseError(
            f"--calibrate stores its result in a model folder of yours, and {options.model} is a checkpoint, a file or "
            "a name on the hub; make a model folder of it with dualfuse export or dualfuse convert, and give that"
        )
    return folder


def _calibrate(options: Options, loaded: LoadedModel, plan: Plan) -> None:
    from dualfuse.evaluation.calibration import calibrate_model
    from dualfuse.evaluation.notes import CALIBRATION, write_note

    calibration = calibrate_model(loaded, options.data, plan)
    written = write_note(_noted_folder(options), CALIBRATION, calibration)
    echo(
        f"calibrated on {calibration.texts:,} texts and {calibration.images:,} images: wrote {written}", to_stderr=True
    )


def _store_reranking(options: Options, result: EvaluationResult, plan: Plan) -> None:
    from dualfuse.evaluation.notes import RERANKING, Reranking, write_note

    if note := Reranking.of(result.metrics, plan.rerank):
        write_note(_noted_folder(options), RERANKING, note)
        verb = "re-ranks by default" if note.helps else "does not re-rank by default"
        echo(f"search {verb}: {note.text}", to_stderr=True)


def _evaluate_benchmark(options: Options, plan: Plan) -> CompositionResult:
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.evaluation.composition import evaluate_composition
    from dualfuse.prepare.benchmarks import SCENES, open_benchmark
    from dualfuse.prepare.sources.composition import scenes
    from dualfuse.training.memory import keep_big_blocks

    chosen = options.composition
    if chosen.benchmark == SCENES:
        benchmark = scenes.draw(chosen.cases, chosen.seed)
    else:
        benchmark = open_benchmark(
            chosen.benchmark, Path(options.data).expanduser(), chosen.images, allow_missing=options.exclude_broken
        )
    if options.answers and (options.answers.suffix not in (".jsonl", ".csv") or not benchmark.cases):
        raise DualfuseError(
            f"--answers {options.answers}: the results of {len(benchmark.cases):,} cases of {benchmark.name} go to a "
            ".jsonl or .csv file; give one, or omit it for retrieval alone"
        )
    keep_big_blocks()
    loaded = load(options.model, device=dist.device())
    return evaluate_composition(loaded.task, benchmark, loaded.processor, plan)
