"""The preprocessing of CLIP and SigLIP in files of Hugging Face and of open_clip, in both directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualfuse.data.image.resize import Interpolation
from dualfuse.data.image.transform import CLIP_MEAN, CLIP_STD, Preprocess
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json_object

Json = Mapping[str, Any]  # Any: whatever a file holds

FILE, COMBINED = "preprocessor_config.json", "processor_config.json"
"""Names of the file, before and since transformers 5, which nests it under "image_processor"."""
CLIP = Preprocess("huggingface_clip", "pillow", CLIP_MEAN, CLIP_STD)
"""CLIP's image processor in transformers: the shorter side is resized, the middle is cropped."""
SIGLIP = Preprocess("squash", "pillow")
"""SigLIP's image processor in transformers."""
_OPEN_CLIP_MODES = {"shortest": "crop", "squash": "squash"}
_FILTERS: Mapping[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters."""


def read_preprocess(folder: Path, default: Preprocess, size: tuple[int, int]) -> tuple[Preprocess, list[str]]:
    """Return the preprocessing that a folder describes, or ``default`` if it has no such file, and notes.

    ``size`` is the height and width of the model's images. Raises DualfuseError for steps that are not supported.
    """
    config = _read(folder)
    if not config:
        return default, [f"there is no {FILE}: images are preprocessed as the published models of this kind do"]
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(name, True):
            raise DualfuseError(f"{FILE} has {name} false; images of all shapes and values need it")
    if not math.isclose(factor := config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise DualfuseError(f"{FILE} has rescale_factor {factor}; only 1/255 is supported")
    if (resample := config.get("resample", 3)) not in _FILTERS:
        raise DualfuseError(f"{FILE} has resample {resample}; supported are 3 (bicubic) and 2 (bilinear)")
    mode, fraction, given = _geometry(config, default)
    notes = [] if given == size else [f"{FILE} has images of {given[0]} x {given[1]}; the model's size is used"]
    mean, std = (config.get(name, getattr(default, name[6:])) for name in ("image_mean", "image_std"))
    read = Preprocess(mode, "pillow", (*mean,), (*std,), crop_fraction=fraction, interpolation=_FILTERS[resample])
    return read, notes


def write_preprocess(preprocess: Preprocess, size: tuple[int, int], model: str, notes: list[str]) -> dict[str, Any]:
    """Return the file for the image processor of ``model`` ("CLIP", "Siglip"); differences are added to ``notes``."""
    if preprocess.resampling != "pillow":
        notes.append("images were resized by torch; transformers uses Pillow, which differs by a few gray levels")
    if preprocess.resize_mode in ("crop", "huggingface"):
        notes.append(f"images were resized by {preprocess.resize_mode!r}; transformers rounds the crop differently")
    square = preprocess.resize_mode == "squash"
    side = {"shortest_edge": int(size[0] / preprocess.crop_fraction)}
    crop = {} if square else {"do_center_crop": True, "crop_size": {"height": size[0], "width": size[1]}}
    return {
        "image_processor_type": f"{model}ImageProcessor",
        "processor_class": f"{model}Processor",
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True),
        "do_center_crop": False,
        **crop,
        "size": {"height": size[0], "width": size[1]} if square else side,
        "resample": next(number for number, name in _FILTERS.items() if name == preprocess.interpolation),
        "rescale_factor": 1 / 255,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def _read(folder: Path) -> Json:
    if (folder / FILE).is_file():
        return read_json_object(folder / FILE)
    combined = read_json_object(folder / COMBINED) if (folder / COMBINED).is_file() else {}
    nested = combined.get("image_processor", {})
    return nested if isinstance(nested, Mapping) else {}


def _geometry(config: Json, default: Preprocess) -> tuple[Any, float, tuple[int, int]]:
    """Return resize mode, crop fraction, and the size (height, width) of the result."""
    crops = config.get("do_center_crop", default.resize_mode == "huggingface_clip")
    size, crop = config.get("size"), config.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size} if crops else {"height": size, "width": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    match size, crop if crops else None:
        case {"height": int(height), "width": int(width)}, None:
            return "squash", 1.0, (height, width)
        case {"height": int(height), "width": int(width)}, {"height": int(rows), "width": int(columns)} if (
            height,
            width,
        ) == (rows, columns):
            return "squash", 1.0, (height, width)
        case {"shortest_edge": int(edge)}, {"height": int(rows), "width": int(columns)} if rows == columns <= edge:
            return "huggingface_clip", _fraction(rows, edge), (rows, columns)
    raise DualfuseError(
        f"{FILE} has size {size} and crop_size {crop if crops else None}; supported are a height and width, or a "
        "shortest_edge with a square center crop that is not larger"
    )


def _fraction(side: int, edge: int) -> float:
    """Return the share of ``edge`` that a crop keeps, such that dividing ``side`` by it gives ``edge`` again."""
    fraction = side / edge
    return fraction if int(side / fraction) == edge else side / (edge + 1e-6)


def read_open_clip(config: Json, default: Preprocess) -> Preprocess:
    """Return the preprocessing of open_clip's preprocess_cfg. Raises DualfuseError for a step that is not supported."""
    mode, filter_name = config.get("resize_mode", "shortest"), config.get("interpolation", "bicubic")
    if mode not in _OPEN_CLIP_MODES or filter_name not in _FILTERS.values():
        raise DualfuseError(
            f"open_clip_config.json has resize_mode {mode!r} and interpolation {filter_name!r}; supported are "
            f"{' and '.join(_OPEN_CLIP_MODES)}, with {' and '.join(_FILTERS.values())}"
        )
    mean, std = (config.get(name) or getattr(default, name) for name in ("mean", "std"))
    resize_mode: Any = _OPEN_CLIP_MODES[mode]
    return replace(default, resize_mode=resize_mode, interpolation=filter_name, mean=(*mean,), std=(*std,))


def write_open_clip(preprocess: Preprocess, notes: list[str]) -> dict[str, Any]:
    """Return open_clip's preprocess_cfg; differences are added to ``notes``."""
    if preprocess.resampling != "pillow" or preprocess.crop_fraction != 1:
        notes.append("images were resized by torch or cropped further; open_clip resizes with Pillow to the whole side")
    if preprocess.resize_mode in ("huggingface", "huggingface_clip"):
        notes.append(f"images were resized by {preprocess.resize_mode!r}; open_clip rounds the crop differently")
    return {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": "squash" if preprocess.resize_mode == "squash" else "shortest",
    }
