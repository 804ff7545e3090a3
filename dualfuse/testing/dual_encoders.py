"""The contract test of a model without a fusion encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.models.base import VisionLanguageModel

Require = Callable[[bool, str], None]
BATCH = 4


def check_dual_encoder(
    model: VisionLanguageModel, copies: list[VisionLanguageModel], size: tuple[int, int], length: int, require: Require
) -> None:
    """Check the verbs of a model in float64 that can only embed and encode, and that ``fuse`` is refused."""
    images, ids = torch.randn(BATCH, 3, *size, dtype=torch.float64), torch.randint(model.vocab_size, (BATCH, length))
    lengths = [length // 2, length, 1, length - 1]
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        image, text = model.embed_image(images), model.embed_text(ids, mask)
        features = model.encode(image), model.encode(text)
        shapes = tuple(tuple(each.shape) for each in features)
        require(shapes == tuple((BATCH, width) for width in model.encode_widths), "encode returns (B, encode_widths)")
        require(image.mask.shape == (BATCH, 1 + image.grid[0] * image.grid[1]), "images are a class token and a grid")
        for other in copies:
            other.double().eval().load_state_dict(model.state_dict())
            same = _close(other.encode(other.embed_text(ids, mask)), features[1])
            require(same, "a model with the weights of another gives what that gives")
        for row, number in enumerate(lengths):
            alone = model.encode(model.embed_text(ids[row : row + 1, :number], mask[row : row + 1, :number]))
            require(_close(alone[0], features[1][row]), "a text alone gives what it gives in a padded batch")
            require(
                _close(model.encode(model.embed_image(images[row : row + 1]))[0], features[0][row]), "an image, too"
            )
        changed = torch.where(mask, ids, (ids + 1) % model.vocab_size)
        require(_close(model.encode(model.embed_text(changed, mask)), features[1]), "ids of padding change nothing")
        other_images = model.encode(model.embed_image(images.flip(3)))
        require(bool(((other_images - features[0]).abs().amax(1) > 1e-9).all()), "encode depends on the image")
        index = torch.tensor([2, 0, 3, 1])
        require(_close(model.encode(image.take(index)), features[0][index]), "take takes examples")
        try:
            model.fuse(image, text)
        except DualfuseError:
            pass
        else:
            require(False, "fuse raises DualfuseError without the capability fusion")
    _check_modules(model, images, ids, mask, require)


def _check_modules(model: VisionLanguageModel, images: Tensor, ids: Tensor, mask: Tensor, require: Require) -> None:
    """Check the blocks and levels, and that every parameter has a gradient."""
    parameters = set(model.parameters())
    inside = {each for block in model.fsdp_blocks() for each in block.parameters()}
    levels = {each for level in model.lr_layers() for module in level for each in module.parameters()}
    require(bool(inside) and inside <= levels <= parameters, "lr_layers covers every block of fsdp_blocks")
    features = model.encode(model.embed_image(images)), model.encode(model.embed_text(ids, mask))
    torch.stack([(each * torch.randn_like(each)).sum() for each in features]).sum().backward()
    for name, parameter in model.named_parameters():
        used = parameter.grad is not None and bool(parameter.grad.any())
        require(used, f"every parameter has a gradient, but {name} has none")
    model.zero_grad()


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-9, rtol=1e-9)
