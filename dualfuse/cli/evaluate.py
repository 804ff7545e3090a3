"""``dualfuse evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import ClassNames, Model, Templates, check_drawing
from dualfuse.io import write_json

EXAMPLES = """
dualfuse evaluate runs/demo/pairs/final 'examples/openpics-mini/*-test-*.tar'
dualfuse evaluate runs/vqa/final 'data/vqa-test-*.tar' --answers answers.json --out scores.json
dualfuse evaluate runs/demo/pairs/final 'data/flowers-test-*.tar' --zero-shot data/flowers --templates clip
"""


def run(
    model: Model,
    data: Annotated[Positional[str], arg(metavar="DATA", help="shards to evaluate on, such as 'data/test-*.tar'")],
    rerank: Annotated[int, arg(help="candidates per query that fusion re-ranks; 0: none")] = 16,
    batch_size: Annotated[int, arg(help="images, texts or pairs per forward pass")] = 64,
    num_workers: Annotated[int, arg(help="data loader processes; 0: load in this process")] = 2,
    exclude_broken: Annotated[bool, arg(help="skip and report unreadable samples instead of failing")] = False,
    out: Annotated[Path | None, arg(metavar="FILE", help="write the metrics to this json file")] = None,
    answers: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="write the predicted answers or captions: .json in the format of VQAv2 or COCO, .csv in that of "
            "NLVR2, .jsonl with all details",
        ),
    ] = None,
    save_image: Annotated[
        Path | None,
        arg(metavar="FILE", help="draw the reconstructions of a visual tokenizer, or the label maps of a segmenter"),
    ] = None,
    zero_shot: ClassNames = "",
    templates: Templates = "",
) -> None:
    """Evaluate a model on its training task.

    Image-text pairs: retrieval in both directions, by embeddings alone and re-ranked by fusion, ITM and MLM. Question
    answering and classification: accuracy. Captioning: CIDEr-D. Segmentation: mean IoU. With --zero-shot: top-1 and
    top-5 accuracy over the class names.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.evaluation.runner import Plan, check_outputs, draw
    from dualfuse.evaluation.runner import evaluate as evaluate_model
    from dualfuse.inference.zero_shot import with_zero_shot
    from dualfuse.training.memory import keep_big_blocks

    if save_image:
        check_drawing(save_image, data)
    keep_big_blocks()
    loaded = with_zero_shot(load(model, device=dist.device()), zero_shot, templates)
    check_outputs(loaded.task, answers=answers, save_image=save_image)
    evaluated = evaluate_model(loaded, data, Plan(batch_size, rerank, num_workers, exclude_broken, all_metrics=True))
    echo("\n".join(evaluated.lines()))
    if out:
        write_json(out, evaluated.metrics)
    if save_image:
        draw(loaded, data, save_image)
    if answers:
        evaluated.write(answers)
