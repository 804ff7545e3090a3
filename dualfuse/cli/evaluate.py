"""``dualfuse evaluate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Flags, Force, Model, ZeroShot, check_drawing, check_new
from dualfuse.io import write_json

EXAMPLES = """
dualfuse evaluate runs/demo/starter/best 'examples/openpics-mini/*-test-*.tar'
dualfuse evaluate runs/vqa/final 'data/vqa-test-*.tar' --answers answers.json --out scores.json
dualfuse evaluate runs/ade20k/final 'data/ade20k-val-*.tar' --scales 0.5 0.75 1 1.25 1.5 1.75 --flip
dualfuse evaluate runs/demo/starter/best 'data/flowers-test-*.tar' --zero-shot data/flowers --templates clip
"""


@dataclass(frozen=True)
class Options:
    """Flags of ``dualfuse evaluate``."""

    model: Model
    data: Annotated[Positional[str], arg(metavar="DATA")]
    """shards to evaluate on, such as 'data/test-*.tar'"""
    rerank: int = 16
    """candidates per query that fusion re-ranks; 0: none"""
    batch_size: int = 64
    """images, texts or pairs per forward pass"""
    num_workers: int = 2
    """data loader processes; 0: load in this process"""
    scales: tuple[float, ...] = ()
    """segmentation averages the probabilities of the image at these scales, such as 0.5 0.75 1 1.25 1.5 1.75"""
    flip: bool = False
    """segmentation also averages over the mirrored images"""
    exclude_broken: bool = False
    """skip and report unreadable samples instead of failing"""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """write the metrics to this json file"""
    answers: Annotated[Path | None, arg(metavar="FILE")] = None
    """write the result of each sample: answers or captions (.json in the format of VQAv2 or COCO, .csv in that of
    NLVR2, .jsonl with target, accuracy and loss), ranks of retrieval, or losses (.jsonl or .csv)"""
    save_image: Annotated[Path | None, arg(metavar="FILE")] = None
    """draw the reconstructions of a visual tokenizer, or the label maps of a segmenter"""
    zero: Flags[ZeroShot] = field(default_factory=ZeroShot)
    force: Force = False


def run(options: Flags[Options]) -> None:
    """Evaluate a model on its training task.

    Image-text pairs: retrieval in both directions, by embeddings alone and re-ranked by fusion, ITM and MLM. Question
    answering and classification: accuracy. Captioning: CIDEr-D. Segmentation: mean IoU. With --zero-shot: top-1 and
    top-5 accuracy over the class names.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.evaluation.runner import Plan, check_outputs, check_test_augmentation, draw
    from dualfuse.evaluation.runner import evaluate as evaluate_model
    from dualfuse.inference.zero_shot import with_zero_shot
    from dualfuse.training.memory import keep_big_blocks

    check_new(options.out, options.answers, options.save_image, force=options.force)
    if options.save_image:
        check_drawing(options.save_image, options.data)
    keep_big_blocks()
    loaded = with_zero_shot(load(options.model, device=dist.device()), options.zero.zero_shot, options.zero.templates)
    check_outputs(loaded.task, answers=options.answers, save_image=options.save_image)
    plan = Plan(
        options.batch_size,
        options.rerank,
        options.num_workers,
        options.exclude_broken,
        scales=options.scales,
        flip=options.flip,
        answers=options.answers is not None,
        all_metrics=True,
    )
    check_test_augmentation(loaded.task, plan)
    evaluated = evaluate_model(loaded, options.data, plan)
    echo("\n".join(evaluated.lines()))
    if options.out:
        write_json(options.out, evaluated.metrics)
    if options.save_image:
        draw(loaded, options.data, options.save_image)
    if options.answers:
        evaluated.write(options.answers)
