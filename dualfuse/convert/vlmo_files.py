"""Official checkpoints of VLMo, and BEiT and BERT that its stages start from, as a recipe and tensors of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from dualfuse.convert import beit, beit_config, bert, vlmo, vlmo_config
from dualfuse.convert.build import ThirdPartyCheckpoint, report_of
from dualfuse.convert.rename import sort
from dualfuse.convert.report import Report, shapes
from dualfuse.convert.tensor_files import Weights, find_weights, read_json, read_weights
from dualfuse.convert.tokenizer import find_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Run
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig

BATCH, RUN = 64, Run(steps=2000)
EPSILON = 1e-6
"""Of BEiT's norms; Hugging Face's folders say 1e-12."""
RELEASED = "language experts are new, as in the official code; vision-language experts are for stage three"


def read_vlmo(path: Path, weights: Weights, tokenizer: str) -> ThirdPartyCheckpoint:
    """Return what an official checkpoint holds; tokens are BERT's unless a ``tokenizer`` is given."""
    kind = vlmo.kind_of(weights.tensors)
    relative = "relative_position_bias_table" in weights.tensors
    found = sort(weights.tensors, vlmo.layout(kind, relative=relative))
    recipe = vlmo_config.recipe_of(found.tensors, found.kept, kind, weights.hyper_parameters, path.stem)
    data = replace(recipe.data, tokenizer=_tokenizer(tokenizer, None), batch_size=BATCH)
    report = report_of(str(path), found, [])
    return ThirdPartyCheckpoint(replace(recipe, data=data, run=RUN), found.tensors, found.kept, report)


def read_beit(
    path: Path,
    tensors: Mapping[str, Tensor],
    tokenizer: str,
    config: Mapping[str, Any] = MappingProxyType({}),  # Any: whatever JSON holds
) -> ThirdPartyCheckpoint:
    """Return what a BEiT holds; ``config`` is that of its folder. The parts of VLMo for texts are new."""
    notes = ["the types of text and image start at zero, so that images are seen exactly as by BEiT"]
    if config.get("model_type") == "beit":
        prefix = beit.PREFIX if any(name.startswith(beit.PREFIX) for name in tensors) else ""
        found = sort(beit.joined(tensors), beit.hugging_face(prefix, tensors.keys()))
        heads = config.get("num_attention_heads", 0)
        notes += _differences(config)
    else:  # timm names tensors as the official code does
        found, heads = sort(tensors, beit.official(tensors.keys())), 0
    recipe = beit_config.recipe_of(found.tensors, path.stem, tokenizer=_tokenizer(tokenizer, None), heads=heads)
    if beit.SHARED in found.tensors:
        notes.append("the table that all layers share became one of each layer, all alike")
    if "model.norm.weight" not in found.tensors:
        notes.append("there is no norm after the last layer: it starts as new")
    notes.append(RELEASED)
    recipe = replace(recipe, data=replace(recipe.data, batch_size=BATCH), run=RUN)
    ours = beit.as_vlmo(found.tensors, beit_config.TEXT)
    return ThirdPartyCheckpoint(recipe, ours, {}, report_of(str(path), found, notes), beit_config.NEW)


def with_language_of_vision(foreign: ThirdPartyCheckpoint) -> ThirdPartyCheckpoint:
    """Let the language experts of a BEiT start as copies of its vision experts, which the official code does not."""
    copied = beit.copied_to_language(foreign.tensors)
    notes = [note for note in foreign.report.notes if note != RELEASED]
    notes.append(f"language experts are copies of the vision experts: {len(copied)} tensors")
    return replace(foreign, tensors=foreign.tensors | copied, report=replace(foreign.report, notes=tuple(notes)))


def with_bert(foreign: ThirdPartyCheckpoint, text: Path, tokenizer: str) -> ThirdPartyCheckpoint:
    """Let words, language experts and the head for masked words of a BEiT start as those of BERT."""
    model, recipe = foreign.recipe.model, foreign.recipe
    assert isinstance(model, VLMoConfig)  # by read_beit
    if text.is_dir():
        config = read_json(text / "config.json")
        if config.get("hidden_act", "gelu") != "gelu" or config.get("model_type", "bert") != "bert":
            raise DualfuseError(
                f"{text} is a {config.get('model_type')} with {config.get('hidden_act')}; BERT has gelu"
            )
    tensors = read_weights(find_weights(text) if text.is_dir() else text).tensors
    found = bert.sort_bert(tensors, depth=model.depth, relative=model.positions == "relative")
    left = {name: tensor for name, tensor in foreign.tensors.items() if name.startswith("model.")}
    ours = bert.fitting(found, width=model.width, text=model.text_length)
    model = replace(model, vocab_size=len(ours["model.words.word.weight"]), share_relative_bias=False)
    data = replace(recipe.data, tokenizer=_tokenizer(tokenizer, text))
    given = foreign.report
    notes = [note for note in given.notes if note != RELEASED]
    notes.append("language experts are BERT's feed-forward parts; its attention is left out: it is BEiT's")
    if len(left) < len(foreign.tensors):
        notes.append("BEiT's head, and what goes with it, is left out: what follows is masked words")
    report = Report(
        f"{given.source} and {text}",
        used={**given.used, **shapes(found.used)},
        unused={**given.unused, **shapes(found.unused)},
        unexpected={**given.unexpected, **shapes(found.unexpected)},
        notes=tuple(notes),
    )
    return replace(
        foreign,
        recipe=replace(recipe, model=model, task=MaskedTextConfig(), data=data),
        tensors=left | ours,
        report=report,
    )


def is_beit(path: Path) -> bool:
    """Whether a folder or file holds a BEiT."""
    if path.is_dir():
        config = path / "config.json"
        return config.is_file() and says_beit(read_json(config))
    return beit.is_beit(read_weights(path).tensors)


def says_beit(config: Mapping[str, Any]) -> bool:
    """Whether a folder's config.json is that of a BEiT of Hugging Face's or timm's."""
    return config.get("model_type") == "beit" or str(config.get("architecture", "")).startswith("beit")


def _differences(config: Mapping[str, Any]) -> list[str]:
    if config.get("hidden_act", "gelu") != "gelu":
        raise DualfuseError(f"this BEiT computes with {config['hidden_act']}; known is gelu")
    epsilon = config.get("layer_norm_eps", 1e-12)
    return (
        [] if epsilon == EPSILON else [f"epsilon of the norms was {epsilon}; here it is {EPSILON}, as in BEiT's code"]
    )


def _tokenizer(given: str, folder: Path | None) -> str:
    beside = folder is not None and (folder / "tokenizer.json").is_file()
    return find_tokenizer(given, folder, "") if given or beside else ""
