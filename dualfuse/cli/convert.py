"""``dualfuse convert``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Flags
from dualfuse.errors import DualfuseError

EXAMPLES = """
dualfuse convert BridgeTower/bridgetower-base models/bridgetower
dualfuse convert vlmo_base_patch16_224.pt models/vlmo
dualfuse convert openai/clip-vit-base-patch16 models/start --text FacebookAI/roberta-base
dualfuse convert ViT-B-32.pt models/clip --tokenizer bpe_simple_vocab_16e6.txt.gz
dualfuse convert models/bridgetower exported --to huggingface
"""


@dataclass(frozen=True)
class Options:
    """Flags of ``dualfuse convert``."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """checkpoint of BridgeTower, METER, VLMo, BEiT, CLIP or SigLIP (file, folder, or name on the hub), or a model
    folder"""
    destination: Annotated[Positional[Path], arg(metavar="DEST")]
    """folder to write"""
    to: Annotated[str, arg(metavar="FORMAT")] = "dualfuse"
    """target format: dualfuse (a model folder), huggingface (transformers), official (the file of the model's own
    code), openai or open_clip (of a CLIP), or one of a plug-in"""
    text: str = ""
    """checkpoint of the text encoder: RoBERTa for a CLIP source, BERT for a BEiT source"""
    language: Literal["random", "vision"] = "random"
    """initialization of language experts for a BEiT source without --text: random, or the vision experts"""
    tokenizer: str = ""
    """tokenizer for a checkpoint without one: tokenizer.json, OpenAI's bpe_simple_vocab_16e6.txt.gz, spiece.model,
    folder, or name on the hub"""
    recipe: str = ""
    """recipe whose model is built on CLIP and RoBERTa; empty: a BridgeTower of their sizes"""


def run(options: Flags[Options]) -> None:
    """Convert third-party checkpoints to model folders, and model folders to other formats.

    Every tensor is accounted for as used, unused, unexpected, new or dropped in DEST/conversion.json. Checkpoints are
    read without running any of their code.
    """
    from dualfuse import recipes
    from dualfuse.convert.convert import convert

    stages = recipes.find_recipe(options.recipe) if options.recipe else ()
    if len(stages) > 1:
        raise DualfuseError(f"--recipe {options.recipe} has {len(stages)} stages; give a recipe with one")
    report = convert(
        options.source,
        options.destination,
        to=options.to,
        text=options.text,
        tokenizer=options.tokenizer,
        recipe=stages[0] if stages else None,
        language=options.language,
    )
    echo(report)
