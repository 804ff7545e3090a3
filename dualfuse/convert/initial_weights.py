"""Models whose parts start from several third-party checkpoints: CLIP and RoBERTa, or BEiT and BERT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dualfuse.convert import shapes as sizes
from dualfuse.convert.checkpoint import Converted, Source, ThirdPartyCheckpoint, build
from dualfuse.convert.formats import beit
from dualfuse.convert.formats.bert import import_bert
from dualfuse.convert.formats.clip import import_clip
from dualfuse.convert.formats.roberta import import_roberta
from dualfuse.convert.rename import ImportedTensors
from dualfuse.convert.report import Report, shapes
from dualfuse.convert.tokenizer import ROBERTA, find_tokenizer
from dualfuse.data.image.transform import OFFICIAL_CLIP
from dualfuse.errors import DualfuseError
from dualfuse.layers.embeddings import resize_positions
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

CROSS_MODAL_LAYERS = 6
"""Cross-modal layers of the paper."""
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_ROBERTA = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "position_embedding_type": "absolute", "pad_token_id": 1}
_POSITIONS, _WORDS = "model.image_tower.positions", "model.text_tower.words.word.weight"


def from_clip_and_roberta(image: Path, text: Path, recipe: Recipe | None = None, tokenizer: str = "") -> Converted:
    """Return a task whose towers have the weights of CLIP and RoBERTa, each a file or a Hugging Face folder.

    All other tensors are initialized with the recipe's seed and reported as new. Without ``recipe`` the task is a
    BridgeTower of the towers' sizes with ``CROSS_MODAL_LAYERS``. A recipe must have the towers' sizes; image positions
    are resized, and tower layers above the recipe's depth are unused.
    """
    images = _read(image, import_clip, _CLIP, _POSITIONS, "CLIP of OpenAI or Hugging Face")
    words = _read(text, import_roberta, _ROBERTA, _WORDS, "RoBERTa of Hugging Face")
    recipe = recipe or _default_recipe(images.tensors, words.tensors)
    model = recipe.model
    if not isinstance(model, BridgeTowerConfig) or not isinstance(model.image, CLIPViTConfig):
        raise DualfuseError(
            f"recipe {recipe.name} builds a {type(model).__name__}; CLIP and RoBERTa fit a BridgeTowerConfig"
        )
    tensors = images.tensors | words.tensors
    tensors[_POSITIONS] = _resize(tensors[_POSITIONS], model.image)
    expected = recipe.build_on_meta().state_dict()
    _check_sizes(tensors, expected, recipe.name)
    used = {name: tensor for name, tensor in tensors.items() if name in expected}
    above = {name: tensor for name, tensor in tensors.items() if name not in expected}
    report = Report(
        f"{image} and {text}",
        used=shapes(used),
        unused=shapes(above | images.unused | words.unused),
        unexpected=shapes(images.unexpected | words.unexpected),
        notes=("names of used tensors are dualfuse's",),
    )
    path = find_tokenizer(tokenizer, text if text.is_dir() else None, ROBERTA)
    recipe = replace(recipe, data=replace(recipe.data, tokenizer=path))
    return build(ThirdPartyCheckpoint(recipe, used, words.kept, report, may_be_new=("*",)))


def with_copied_experts(checkpoint: ThirdPartyCheckpoint) -> ThirdPartyCheckpoint:
    """Initialize the language experts of a BEiT with copies of its vision experts; the official code does not."""
    copies = {
        name.replace(".experts.image.", ".experts.text."): tensor.clone()
        for name, tensor in checkpoint.tensors.items()
        if ".experts.image." in name
    }
    note = f"language experts are copies of the vision experts: {len(copies)} tensors"
    report = replace(checkpoint.report, notes=(*_other_notes(checkpoint), note))
    return replace(checkpoint, tensors=checkpoint.tensors | copies, report=report)


def with_bert(checkpoint: ThirdPartyCheckpoint, text: Path, tokenizer: str) -> ThirdPartyCheckpoint:
    """Initialize the word embeddings, language experts and MLM head of a BEiT with those of BERT."""
    model, recipe, report = checkpoint.recipe.model, checkpoint.recipe, checkpoint.report
    assert isinstance(model, VLMoConfig)  # of every BEiT
    source = Source(text)
    if (act := source.config.get("hidden_act", "gelu")) != "gelu" or source.config.get("model_type", "bert") != "bert":
        raise DualfuseError(f"{text} is a {source.config.get('model_type')} with {act}; BERT has gelu")
    imported = import_bert(
        source.tensors,
        depth=model.depth,
        width=model.width,
        text_length=model.text_length,
        relative=model.positions == "relative",
    )
    encoder = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("model.")}
    vocab_size = len(imported.tensors["model.words.word.weight"])
    path = find_tokenizer(tokenizer, text)
    notes = (*_other_notes(checkpoint), "language experts are BERT's feed-forward parts; its attention is unused")
    if len(encoder) < len(checkpoint.tensors):
        notes = (*notes, "BEiT's head, and what belongs to it, is unused: the task is masked language modeling")
    return replace(
        checkpoint,
        recipe=replace(
            recipe,
            model=replace(model, vocab_size=vocab_size, share_relative_bias=False),
            task=MaskedTextConfig(),
            data=replace(recipe.data, tokenizer=path),
        ),
        tensors=encoder | imported.tensors,
        report=Report(
            f"{report.source} and {text}",
            used={**report.used, **shapes(imported.used)},
            unused={**report.unused, **shapes(imported.unused)},
            unexpected={**report.unexpected, **shapes(imported.unexpected)},
            notes=notes,
        ),
    )


def _other_notes(checkpoint: ThirdPartyCheckpoint) -> tuple[str, ...]:
    return tuple(note for note in checkpoint.report.notes if note != beit.NEW_EXPERTS)


def _read(
    path: Path,
    import_tower: Callable[[Mapping[str, Tensor]], ImportedTensors],
    expected: Mapping[str, object],
    mark: str,
    kind: str,
) -> ImportedTensors:
    """Read a tower whose config, if there is one, has the ``expected`` values, and whose tensors include ``mark``."""
    source = Source(path)
    config = source.config.get("vision_config", source.config)
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise DualfuseError(f"{path / 'config.json'} has {name} {config[name]!r}; the tower here has {value!r}")
    imported = import_tower(source.tensors)
    if mark not in imported.tensors:
        raise DualfuseError(f"{path} is not a {kind}: its tensors include {', '.join(list(imported.unexpected)[:4])}")
    return imported


def _default_recipe(images: Mapping[str, Tensor], words: Mapping[str, Tensor]) -> Recipe:
    image, text = sizes.image_tower(images), sizes.text_tower(words)
    model = BridgeTowerConfig(
        image=image,
        text=text,
        width=text.width,
        heads=text.heads,
        feed_forward=text.feed_forward,
        layers=min(CROSS_MODAL_LAYERS, image.depth, text.depth),
        itc_image_feature="tower" if image.width == text.width else "transformed",
    )
    head = ITCHeadConfig(256, bias=True, temperature="plain")
    data = Data(image_size=image.image_size, preprocess=OFFICIAL_CLIP, text_length=min(50, text.text_length))
    return Recipe("towers", model, PairsConfig(itc_features="unimodal", itc_head=head, masking="token"), data)


def _resize(positions: Tensor, image: CLIPViTConfig) -> Tensor:
    side = round((len(positions) - 1) ** 0.5)
    grid = (image.image_size[0] // image.patch_size, image.image_size[1] // image.patch_size)
    return resize_positions(positions[None].float(), (side, side), grid)[0]


def _check_sizes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], recipe: str) -> None:
    towers = ("model.image_tower.", "model.text_tower.")
    if missing := [name for name in expected if name.startswith(towers) and name not in tensors]:
        raise DualfuseError(
            f"recipe {recipe} needs {len(missing)} tensors that the towers lack, such as {missing[0]}: it is too deep"
        )
    for name, tensor in tensors.items():
        if name in expected and expected[name].shape != tensor.shape:
            raise DualfuseError(
                f"{name} is {tuple(tensor.shape)} in the files and {tuple(expected[name].shape)} in recipe {recipe}: "
                "choose a recipe of the towers' sizes, or none"
            )
