"""One pre-training step on pairs done the way VLMo was released, on our weights: the yardstick of bench/step.py.

Every pass runs separately, embeds its inputs and gathers the relative bias again; texts are padded to the full length;
attention is explicit, in float32; the last layer computes every position; the MLM head reads every token; and negatives
are sampled one by one in a Python loop. Loss and gradients equal those of
:class:`dualfuse.tasks.pretrain.pairs.Pairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.layers.attention import SelfAttention
from dualfuse.layers.blocks import SHARED, Block
from dualfuse.layers.heads import ITCHead, normalize
from dualfuse.models.vlmo import IMAGE, TEXT, VL, VLMo
from dualfuse.tasks.pretrain.pairs import PairBatch, Pairs

Draw = Callable[[Tensor], int]
"""Picks a column by the weights (B,) of one row."""


class PublishedBatch(TypedDict):
    """B pairs: image (B, 3, H, W); ids, mask, masked_ids, labels (B, T), texts all padded to one length.

    Labels are -100 where nothing was masked.
    """

    image: Tensor
    ids: Tensor
    mask: Tensor
    masked_ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Inputs:
    """What enters the blocks: x (B, T + P, D), its first ``words`` rows are text; mask (B, T + P), True where seen."""

    x: Tensor
    mask: Tensor
    words: int
    bias: Tensor | None


def drawn(weights: Tensor) -> int:
    """Draw a column by its weight."""
    return int(torch.multinomial(weights, 1).item())


def heaviest(weights: Tensor) -> int:
    """Take the column of the largest weight: a draw that can be repeated."""
    return int(weights.argmax())


def padded(batch: PairBatch, length: int) -> PublishedBatch:
    """Return the same pairs with texts padded to ``length``, and labels in place of rows and targets."""
    missing = length - batch["ids"].shape[1]
    ids, mask, masked_ids = (F.pad(batch[name], (0, missing)) for name in ("ids", "mask", "masked_ids"))
    labels = torch.full_like(ids, -100)
    known = batch["targets"] != -100
    pair = torch.arange(len(ids))[:, None].expand_as(known)
    labels[pair[known], batch["positions"][known]] = batch["targets"][known]
    return {"image": batch["image"], "ids": ids, "mask": mask, "masked_ids": masked_ids, "labels": labels}


def published_loss(task: Pairs, batch: PublishedBatch, draw: Draw = drawn) -> Tensor:
    """Return the sum of contrast, matching and masked words, for a task with the settings of the paper."""
    model = task.model
    assert isinstance(model, VLMo)
    image = alone(model, embed(model, image=batch["image"]), IMAGE)
    text = alone(model, embed(model, ids=batch["ids"], mask=batch["mask"]), TEXT)
    contrast, plain = contrasted(task, image, text)

    states = fused(model, batch["masked_ids"], batch["mask"], batch["image"])[:, : batch["ids"].shape[1]]
    words = F.cross_entropy(task.mlm_head(states).flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)

    negative_image, negative_text = negatives(plain.T, draw), negatives(plain, draw)
    pooled = [
        torch.tanh(model.pooler(fused(model, ids, mask, image)[:, 0]))
        for ids, mask, image in (
            (batch["ids"], batch["mask"], batch["image"]),
            (batch["ids"], batch["mask"], torch.stack([batch["image"][row] for row in negative_image])),
            (*(torch.stack([batch[name][row] for row in negative_text]) for name in ("ids", "mask")), batch["image"]),
        )
    ]
    is_match = torch.arange(3 * len(plain)) < len(plain)
    match = F.cross_entropy(task.itm_head(torch.cat(pooled)), is_match.long())
    return task.cfg.itc_weight * contrast + task.cfg.itm_weight * match + task.cfg.mlm_weight * words


def contrasted(task: Pairs, image: Sequence[Tensor], text: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean loss over the views (B, D), and the first view's logits (B, B), image to text."""
    logits, losses = [], []
    for head, one, other in zip(task.itc_heads, image, text, strict=True):
        assert isinstance(head, ITCHead)
        logits.append(head.scale * normalize(head.image(one)) @ normalize(head.text(other)).T)
        same = torch.arange(len(one))
        losses.append((F.cross_entropy(logits[-1], same) + F.cross_entropy(logits[-1].T, same)) / 2)
    return torch.stack(losses).mean(), logits[0].detach()


def negatives(logits: Tensor, draw: Draw) -> list[int]:
    """Draw one column for each row, never the diagonal."""
    weights = logits.float().softmax(1).fill_diagonal_(0)
    return [draw(row) for row in weights]


def embed(model: VLMo, *, ids: Tensor | None = None, mask: Tensor | None = None, image: Tensor | None = None) -> Inputs:
    """Embed a text, an image or both, and gathers the bias for them."""
    parts, masks, grid = [], [], ()
    if ids is not None and mask is not None:
        parts.append(model.words(ids) + model.types.weight[0])
        masks.append(mask)
    if image is not None:
        patches, grid = model.patches(image)
        parts.append(patches + model.types.weight[1])
        masks.append(mask.new_ones(patches.shape[:2]) if mask is not None else torch.ones(patches.shape[:2]).bool())
    words = 0 if ids is None else ids.shape[1]
    bias = None if model.relative_bias is None else model.relative_bias(text=words, grid=grid)
    return Inputs(torch.cat(parts, dim=1), torch.cat(masks, dim=1), words, bias)


def alone(model: VLMo, inputs: Inputs, modality: str) -> tuple[Tensor, Tensor]:
    """Return the first row of one modality's own experts, and of the branch through the vision-language experts."""
    blocks, x = list(model.blocks), inputs.x
    for layer in range(model.vl_expert_start):
        x = run(blocks[layer], x, inputs, layer, ((modality, x.shape[1]),))
    views = []
    for expert in (modality, VL):
        branch = x
        for layer in range(model.vl_expert_start, len(blocks)):
            branch = run(blocks[layer], branch, inputs, layer, ((expert, x.shape[1]),))
        views.append(model.norm(branch)[:, 0])
    return views[0], views[1]


def fused(model: VLMo, ids: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    """Return every state (B, T + P, D) of a text and an image that see each other."""
    inputs = embed(model, ids=ids, mask=mask, image=image)
    x = inputs.x
    separate = ((TEXT, inputs.words), (IMAGE, x.shape[1] - inputs.words))
    for layer, block in enumerate(model.blocks):
        x = run(block, x, inputs, layer, separate if layer < model.vl_expert_start else ((VL, x.shape[1]),))
    return model.norm(x)


def run(block: nn.Module, x: Tensor, inputs: Inputs, layer: int, route: tuple[tuple[str, int], ...]) -> Tensor:
    """Run one block: attention for all rows, then each part's expert."""
    assert isinstance(block, Block)
    bias = None if inputs.bias is None else inputs.bias[layer]
    attended = written_out(block.attention[SHARED], block.norm(x), inputs.mask, bias)
    x = x + block.drop_path(block.scale_1(attended))
    parts = x.split([length for _, length in route], dim=1)
    named = zip(route, parts, strict=True)
    return torch.cat([part + block.drop_path(block.scale_2(block.experts[name](part))) for (name, _), part in named], 1)


def written_out(attention: nn.Module, x: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """Attention as scores, added bias, masked fill, softmax and product, in float32."""
    assert isinstance(attention, SelfAttention)
    batch, rows, width = x.shape
    biases = torch.cat([attention.q_bias, torch.zeros_like(attention.v_bias), attention.v_bias])
    qkv = F.linear(x, attention.qkv.weight, biases).reshape(batch, rows, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv[0], qkv[1], qkv[2]
    scores = (query * query.shape[-1] ** -0.5).float() @ key.float().transpose(-2, -1)  # (B, H, N, N)
    if bias is not None:
        scores = scores + bias.unsqueeze(0)
    scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    attended = scores.softmax(dim=-1).type_as(x) @ value
    return attention.projection(attended.transpose(1, 2).reshape(batch, rows, width))
