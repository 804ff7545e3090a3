"""The commands: one function each. Its parameters are the flags, its docstring is the help.

Torch is imported inside the functions that need it, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from dualfuse.errors import DualfuseError
from dualfuse.prepare.options import PrepareOptions

Model = Annotated[
    Positional[str],
    arg(
        metavar="MODEL",
        help="model folder such as runs/demo/pairs/final, or a checkpoint or hub name that convert knows",
    ),
]

Names = Annotated[
    str,
    arg(
        metavar="NAMES",
        help="tell classes apart by their names, without having trained them: a file with one a line, the folder of "
        'shards that prepare named classes in, or "cat, dog"',
    ),
]
Templates = Annotated[
    str, arg(metavar="FILE", help="with --zero-shot: sentences, {} for the name, one a line; or clip for eight of CLIP")
]


def prepare(
    source: Annotated[
        Positional[Path],
        arg(metavar="SOURCE", help="images with .txt beside, csv, tsv, jsonl, parquet, COCO or Karpathy json, tars"),
    ],
    out: Annotated[Positional[Path], arg(metavar="OUT", help="folder for the shards")],
    options: OmitArgPrefixes[PrepareOptions],
) -> None:
    """Turn images and texts that you have into indexed shards.

    The format is recognised. What cannot be used is left out, counted and listed in OUT/skipped.jsonl. It can be
    stopped at any time: the same command resumes where it stopped.
    """
    from rich.console import Console

    from dualfuse.prepare.pipeline import prepare

    Console(highlight=False).print(prepare(source, out, options))


def doctor(
    path: Annotated[Positional[Path], arg(metavar="PATH", help="shards: a tar file, a folder of them, or a pattern")],
    text_length: Annotated[int, arg(help="texts of more tokens are over-long")] = 40,
    save_image: Annotated[Path, arg(help="contact sheet to draw; the findings are written beside it as json")] = Path(
        "contact-sheet.jpg"
    ),
) -> None:
    """Check a data set, and draw a contact sheet of it.

    Finds unreadable, tiny, huge, animated and duplicate images, empty, over-long and duplicate texts, and what two
    splits share.
    """
    from rich.console import Console

    from dualfuse.doctor.examine import examine

    examine(path, text_length=text_length, save_image=save_image).render(Console(highlight=False))
    print(f"contact sheet: {save_image}")


def list_recipes() -> None:
    """List the recipes that train knows by name."""
    from dualfuse import recipes

    width = max(map(len, recipes.NAMES))
    for name in recipes.NAMES:
        print(f"{name:{width}}  {recipes.summary(name)}")


def train(arguments: Sequence[str]) -> None:
    """Train a recipe; every number of it is a typed flag."""
    from dualfuse import recipes
    from dualfuse.training.loop import train

    parser = argparse.ArgumentParser(
        prog="dualfuse train",
        description="Train a recipe. The same command goes on where a stopped run was. On several GPUs: "
        "torchrun --nproc-per-node 8 -m dualfuse train NAME ...",
        epilog="dualfuse recipes lists the names; dualfuse train NAME --help lists every flag of that recipe.",
        add_help=not arguments or arguments[0].startswith("-"),
    )
    parser.add_argument("name", help="a listed name, a model folder, path/file.py:function, or module:function")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    known, flags = parser.parse_known_args(arguments)
    chosen = recipes.override(recipes.find(known.name), flags, prog=f"dualfuse train {known.name} [--out DIR]")
    print(f"the model is in {train(chosen, known.out or Path('runs') / known.name.rpartition(':')[2])}")


def evaluate(
    model: Model,
    data: Annotated[Positional[str], arg(metavar="DATA", help="shards to judge on, such as 'data/test-*.tar'")],
    rerank: Annotated[int, arg(help="candidates per query that the fusion path puts in a new order; 0: none")] = 16,
    batch: Annotated[int, arg(help="images, texts or pairs at a time")] = 64,
    workers: Annotated[int, arg(help="loader processes")] = 2,
    exclude_broken: Annotated[bool, arg(help="leave out and report samples that cannot be read")] = False,
    out: Annotated[Path | None, arg(help="json file for the numbers")] = None,
    answers: Annotated[
        Path | None,
        arg(help="file for its answers, or captions: .json as VQAv2 or COCO wants them, .csv as NLVR2, .jsonl for all"),
    ] = None,
    save_image: Annotated[
        Path | None, arg(help="image to draw: what a tokenizer makes of images, or the classes of their pixels")
    ] = None,
    zero_shot: Names = "",
    templates: Templates = "",
) -> None:
    """Judge a model by what it was trained for.

    Pairs: retrieval both ways, alone and re-ranked, matching, masked words; every image of DATA is searched with all
    its captions, in chunks whose memory does not grow with images times captions. Questions: how many are answered
    right. With --zero-shot: how often the right one of these names is the first, and among the first five.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.evaluation.retrieval import Plan
    from dualfuse.evaluation.runner import check_outputs, draw, evaluate_all
    from dualfuse.evaluation.zero_shot import ZeroShotClasses, with_zero_shot
    from dualfuse.training.memory import keep_big_blocks

    keep_big_blocks()
    loaded = with_zero_shot(load(model, device=dist.device()), ZeroShotClasses(zero_shot, templates))
    check_outputs(loaded.task, answers=answers, save_image=save_image)
    evaluated = evaluate_all(loaded, data, Plan(batch, rerank, workers, exclude_broken))
    print("\n".join(evaluated.lines()))
    if out:
        out.write_text(json.dumps(evaluated.metrics, indent=1) + "\n")
    if save_image:
        draw(loaded, data, save_image)
    if answers:
        evaluated.write(answers)


def search(
    model: Model,
    images: Annotated[Positional[str], arg(metavar="IMAGES", help="folder of images, or shards")],
    query: Annotated[Positional[str], arg(metavar="QUERY", help="a text, or the path of an image")],
    top: Annotated[int, arg(help="images to show")] = 10,
    rerank: Annotated[int, arg(help="candidates that the fusion path of the same weights puts in a new order")] = 0,
    save_image: Annotated[Path | None, arg(help="image save_image to draw")] = Path("search.png"),
) -> None:
    """Search images by text or by image.

    The images are embedded once; the index is kept beside them and follows what is added, changed or removed.
    """
    from dualfuse.search.command import search_command

    search_command(model, images, query, top=top, rerank=rerank, save_image=save_image)


def predict(
    model: Model,
    image: Annotated[tuple[Path, ...], arg(help="image, or several for a model that wants several")] = (),
    text: Annotated[str, arg(help="question, sentence, or text with [MASK] (<mask>) where a word is missing")] = "",
    table: Annotated[
        Path | None, arg(help="csv, jsonl or parquet with columns image and text: a row at a time")
    ] = None,
    top: Annotated[int, arg(help="answers, or words for each mask")] = 5,
    out: Annotated[Path | None, arg(help=".jsonl or .csv for the answers to a table")] = None,
    batch: Annotated[int, arg(help="rows of a table at a time")] = 32,
    zero_shot: Names = "",
    templates: Templates = "",
) -> None:
    """Answer for an image and a text: whatever the model has trained to say."""
    from dualfuse.evaluation.zero_shot import ZeroShotClasses
    from dualfuse.inference.command import predict_command

    names = ZeroShotClasses(zero_shot, templates)
    predict_command(model, image=image, text=text, top=top, table=table, out=out, batch=batch, names=names)


def explain(
    model: Model,
    image: Annotated[tuple[Path, ...], arg(help="image, or several for a model that wants several")],
    text: Annotated[str, arg(help="the text whose words are followed")],
    method: Annotated[
        Literal["gradient", "rollout"], arg(help="attention weighted by what it does for the answer, or all of it")
    ] = "gradient",
    save_image: Annotated[Path, arg(help="image to draw")] = Path("explain.png"),
) -> None:
    """Draw which patches of an image each word of a text looked at."""
    from dualfuse.inference.heat_map_grid import explain_command

    explain_command(model, image=image, text=text, save_image=save_image, method=method)


def card(
    folder: Annotated[Positional[Path], arg(metavar="FOLDER", help="model folder")],
    scores: Annotated[Path | None, arg(help="json that evaluate --out wrote")] = None,
    command: Annotated[str, arg(help="the command that made the scores")] = "",
    licence: Annotated[str, arg(help="of the weights, such as apache-2.0")] = "",
) -> None:
    """Write the card of a model folder: what it is, what it trained from, what it reached."""
    from dualfuse.card import Scores, write_card

    print(write_card(folder, Scores.read(scores, command) if scores else None, licence))


def convert(
    source: Annotated[
        Positional[str],
        arg(
            metavar="SOURCE",
            help="folder, hub name or official file of BridgeTower, METER, VLMo, BEiT or CLIP, or a model folder",
        ),
    ],
    destination: Annotated[Positional[Path], arg(metavar="DEST", help="folder to write")],
    to: Annotated[Literal["dualfuse", "huggingface", "official"], arg(help="whose format")] = "dualfuse",
    text: Annotated[str, arg(help="RoBERTa, if SOURCE is CLIP; BERT, if it is BEiT")] = "",
    language: Annotated[
        Literal["random", "vision"], arg(help="what language experts start as, if SOURCE is BEiT alone")
    ] = "random",
    tokenizer: Annotated[str, arg(help="tokenizer.json, folder or hub name, for checkpoints without one")] = "",
    recipe: Annotated[str, arg(help="what is built above CLIP and RoBERTa; empty: a BridgeTower of their sizes")] = "",
) -> None:
    """Turn checkpoints of others into model folders, and back.

    Every tensor is accounted for: used, unused, new. The whole list is DEST/conversion.json. No code of a file is run.
    """
    from dualfuse import recipes
    from dualfuse.convert.convert import convert

    stages = recipes.find(recipe) if recipe else ()
    if len(stages) > 1:
        raise DualfuseError(f"{recipe} has several stages; give a recipe of one")
    above = stages[0] if stages else None
    said = convert(source, destination, to=to, text=text, tokenizer=tokenizer, recipe=above, language=language)
    print(said)


def upload(
    model: Annotated[Positional[Path], arg(metavar="FOLDER", help="model folder, in either format")],
    name: Annotated[Positional[str], arg(metavar="OWNER/NAME", help="repository on the Hugging Face hub")],
    private: Annotated[bool, arg(help="show it to nobody else, if it is new")] = True,
) -> None:
    """Put a model folder on the Hugging Face hub."""
    from dualfuse import hub

    print(hub.upload(model, name, private=private))


def report(
    run: Annotated[Positional[Path], arg(metavar="RUN", help="folder of a run, such as runs/demo/pairs")],
) -> None:
    """Write the page of a run: its curves, numbers and settings."""
    from dualfuse.report.run_page import report

    print(f"the page is {report(run)}")


def demo(
    out: Annotated[Path, arg(help="folder for data, models and page")] = Path("runs/demo"),
    seed: Annotated[int, arg(help="of weights and order")] = 1,
) -> None:
    """Train, judge and report on the images that come with the project.

    It can be stopped at any time: the same command resumes where it stopped.
    """
    from dualfuse.report.demo.run import demo

    demo(out, seed=seed)


COMMANDS = {
    "prepare": prepare,
    "doctor": doctor,
    "recipes": list_recipes,
    "train": train,
    "evaluate": evaluate,
    "search": search,
    "predict": predict,
    "explain": explain,
    "convert": convert,
    "card": card,
    "upload": upload,
    "report": report,
    "demo": demo,
}
"""Every command and its function; the first line of the docstring stands in the list of commands."""
