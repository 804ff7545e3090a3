"""A recipe whose towers start as CLIP and RoBERTa, as BridgeTower and METER do before they see pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dualfuse.convert import clip, from_shapes, roberta
from dualfuse.convert.build import Converted
from dualfuse.convert.rename import Sorted, sort
from dualfuse.convert.report import Report, shapes
from dualfuse.convert.tensor_files import find_weights, read_json, read_weights
from dualfuse.convert.tokenizer import ROBERTA, check_tokenizer, find_tokenizer
from dualfuse.data.image.transform import OFFICIAL_CLIP
from dualfuse.errors import DualfuseError
from dualfuse.layers.embeddings import resize_positions
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.pretrain.pairs import PairsConfig

LAYERS = 6  # cross-modal ones, of the paper


def from_towers(image: Path, text: Path, recipe: Recipe | None = None, tokenizer: str = "") -> Converted:
    """Return a task whose towers have the weights of CLIP and RoBERTa, each a file or a folder of Hugging Face.

    Everything else keeps its initial weights, drawn with the recipe's seed, and is reported as new. Without ``recipe``
    it is a BridgeTower of the towers' sizes, with ``LAYERS`` cross-modal layers. With one its sizes must be the
    towers'; positions of the images are resized, and what lies above the recipe's depth is left out.
    """
    images, words = _read_clip(image), _read_roberta(text)
    recipe = recipe or _default(images.tensors, words.tensors)
    model = recipe.model
    if not isinstance(model, BridgeTowerConfig) or not isinstance(model.image, CLIPViTConfig):
        raise DualfuseError(
            f"recipe {recipe.name} builds a {type(model).__name__}; CLIP and RoBERTa fit a BridgeTowerConfig"
        )
    given = images.tensors | words.tensors
    given["model.image_tower.positions"] = _resized(given["model.image_tower.positions"], model.image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        task = recipe.build()
    wanted = task.state_dict()
    _refuse(given, wanted, recipe.name)
    task.load_state_dict({name: tensor for name, tensor in given.items() if name in wanted}, strict=False)
    left = {name: tensor for name, tensor in given.items() if name not in wanted}
    report = Report(
        f"{image} and {text}",
        used=shapes({name: tensor for name, tensor in given.items() if name in wanted}),
        unused=shapes(left | images.unused | words.unused),
        unexpected=shapes(images.unexpected | words.unexpected),
        new=shapes({name: tensor for name, tensor in wanted.items() if name not in given}),
        notes=("names of used tensors are dualfuse's",),
    )
    fetched = find_tokenizer(tokenizer, text if text.is_dir() else None, ROBERTA.get(model.text.width, ROBERTA[768]))
    recipe = replace(recipe, data=replace(recipe.data, tokenizer=fetched))
    check_tokenizer(recipe.data.text_transform, task.model.vocab_size)
    return Converted(task.eval(), recipe, words.kept, report)


def _read_clip(path: Path) -> Sorted:
    tensors = _read(path, {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}, "vision_config")
    if "visual.class_embedding" in tensors:
        found = sort(tensors, clip.OPENAI)
    else:
        prefixed = any(name.startswith("vision_model.") for name in tensors)
        found = sort(clip.joined(tensors), clip.HUGGING_FACE if prefixed else clip.BARE_HUGGING_FACE)
    return _found(path, found, "model.image_tower.positions", "CLIP, OpenAI's or Hugging Face's")


def _read_roberta(path: Path) -> Sorted:
    only = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "position_embedding_type": "absolute", "pad_token_id": 1}
    tensors = _read(path, only, "")
    prefixed = any(name.startswith("roberta.") for name in tensors)
    found = sort(tensors, roberta.WITH_HEAD if prefixed else roberta.BARE)
    found = _found(path, found, "model.text_tower.words.word.weight", "RoBERTa of Hugging Face")
    if "mlm_head.dense.weight" in found.tensors:
        found.tensors["mlm_head.decoder.weight"] = found.tensors["model.text_tower.words.word.weight"]  # tied there
    return found


def _read(path: Path, only: Mapping[str, object], part: str) -> dict[str, Tensor]:
    if not path.is_dir():
        return read_weights(path).tensors
    config = read_json(path / "config.json")
    config = config.get(part, config) if part else config
    for name, value in only.items():
        if config.get(name, value) != value:
            raise DualfuseError(f"{path / 'config.json'} says {name} {config[name]!r}; the tower here has {value!r}")
    return read_weights(find_weights(path)).tensors


def _found(path: Path, found: Sorted, mark: str, kind: str) -> Sorted:
    if mark not in found.tensors:
        raise DualfuseError(f"{path} holds no {kind}, but tensors such as {', '.join(list(found.unexpected)[:4])}")
    return found


def _default(images: Mapping[str, Tensor], words: Mapping[str, Tensor]) -> Recipe:
    image, text = from_shapes.image_tower(images), from_shapes.text_tower(words)
    model = BridgeTowerConfig(
        image=image,
        text=text,
        width=text.width,
        heads=text.heads,
        feed_forward=text.feed_forward,
        layers=min(LAYERS, image.depth, text.depth),
        itc_image_feature="tower" if image.width == text.width else "transformed",
    )
    task = PairsConfig(
        itc_features="unimodal", itc_head=ITCHeadConfig(256, bias=True, temperature="plain"), masking="token"
    )
    data = Data(image_size=image.image_size, preprocess=OFFICIAL_CLIP, text_length=min(50, text.text_length))
    return Recipe("towers", model, task, data)


def _resized(positions: Tensor, image: CLIPViTConfig) -> Tensor:
    side = round((len(positions) - 1) ** 0.5)
    grid = (image.image_size[0] // image.patch_size, image.image_size[1] // image.patch_size)
    return resize_positions(positions[None].float(), (side, side), grid)[0]


def _refuse(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> None:
    towers = ("model.image_tower.", "model.text_tower.")
    if missing := [key for key in wanted if key.startswith(towers) and key not in given]:
        raise DualfuseError(
            f"recipe {name} asks for {len(missing)} tensors the towers lack, such as {missing[0]}: too deep"
        )
    for key, tensor in given.items():
        if key in wanted and wanted[key].shape != tensor.shape:
            raise DualfuseError(
                f"{key} is {tuple(tensor.shape)} in the files and {tuple(wanted[key].shape)} in recipe {name}: "
                "choose a recipe of the towers' sizes, or none"
            )
