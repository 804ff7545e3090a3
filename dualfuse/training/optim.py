"""Which parameters are decayed, which optimiser moves them, and how fast at which step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse.errors import DualfuseError
from dualfuse.layers.blocks import Expert
from dualfuse.layers.embeddings import PatchEmbedding
from dualfuse.layers.heads import MLMHead
from dualfuse.models.base import VisionLanguageModel
from dualfuse.models.towers.clip_vit import CLIPViT
from dualfuse.recipe import Optim
from dualfuse.tasks.base import Task

MATRICES = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def parameter_groups(module: nn.Module, optim: Optim) -> list[dict[str, Any]]:  # Any: what torch.optim takes
    """Return the trainable parameters in groups of one weight decay and one ``rate`` (of ``optim.lr``), with ``names``.

    ``optim.decay`` chooses what is decayed. "matrices": the weights of linear, convolution and embedding layers.
    "official" repeats the official code of VLMo, METER and BridgeTower: all but what has "bias" in its name and the
    layer norms of the model and of the word head; those of VLMo's experts, of CLIP and of other heads are decayed.
    "beit": all of two and more dimensions but class token and positions.
    """
    decayed = {"matrices": _matrices, "official": _released, "beit": _beit}[optim.decay_rule](module)
    rates = _rates(module, optim)
    groups: dict[tuple[float, float], dict[str, Any]] = {}  # Any: see above
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            weight_decay, rate = optim.weight_decay if parameter in decayed else 0.0, rates.get(parameter, 1.0)
            new = {"params": [], "names": [], "weight_decay": weight_decay, "rate": rate, "lr": optim.lr * rate}
            group = groups.setdefault((-weight_decay, rate), new)
            group["params"].append(parameter)
            group["names"].append(name)
    if not groups:
        raise DualfuseError("no parameter is trainable: let recipe.train_only match at least one, or leave it empty")
    return [groups[key] for key in sorted(groups)]


def _rates(module: nn.Module, optim: Optim) -> dict[Tensor, float]:
    """Return the parameters that learn at a rate of their own; a temperature is none of the heads' matrices."""
    if not isinstance(module, Task):
        return {}
    heads = (part for name, head in module.named_children() if name != "model" for part in head.modules())
    layers = (layer for layer in heads if isinstance(layer, (*MATRICES, nn.LayerNorm)))
    rates: dict[Tensor, float] = {parameter: optim.head_lr_mult for layer in layers for parameter in layer.parameters()}
    for part in module.model.fusion_modules():
        rates |= dict.fromkeys(part.parameters(), optim.fusion_lr_mult)
    if optim.layer_decay != 1:
        for parameter, share in _shares_by_depth(module.model, optim.layer_decay).items():
            rates[parameter] = rates.get(parameter, 1.0) * share
    return rates


def _shares_by_depth(model: nn.Module, decay: float) -> dict[Tensor, float]:
    """Return ``decay`` to the power of how far a parameter lies below the heads; levels that do not learn count none."""
    if not isinstance(model, VisionLanguageModel) or not 0 < decay < 1:
        raise DualfuseError(
            f"layer_decay is {decay} for a {type(model).__name__}; only VLMo and BridgeTower have layers to decay "
            "the learning rate by, each to a share between 0 and 1 of the layer above; 1 leaves all alike"
        )
    levels = [[p for part in parts for p in part.parameters() if p.requires_grad] for parts in model.lr_layers()]
    shares: dict[Tensor, float] = {}
    for below, parameters in enumerate(reversed([level for level in levels if level]), start=1):
        shares = dict.fromkeys(parameters, decay**below) | shares  # what is listed again lies where it is higher
    return shares


def _matrices(module: nn.Module) -> set[Tensor]:
    return {layer.weight for layer in module.modules() if isinstance(layer, MATRICES)}


def _released(module: nn.Module) -> set[Tensor]:
    """The released rule goes by spelling, and misses "norm2_text.weight", "ln_1.weight", "vqa_classifier.1.weight"."""
    spared = _norms(module, VisionLanguageModel, MLMHead) - _norms(module, Expert, CLIPViT)
    return {
        parameter for name, parameter in module.named_parameters() if "bias" not in name and parameter not in spared
    }


def _beit(module: nn.Module) -> set[Tensor]:
    places = [part for part in module.modules() if isinstance(part, PatchEmbedding)]
    spared = {parameter for part in places for parameter in part.parameters(recurse=False)}
    decayed: set[Tensor] = {parameter for parameter in module.parameters() if parameter.ndim > 1}
    return decayed - spared


def _norms(module: nn.Module, *owners: type[nn.Module]) -> set[Tensor]:
    parts = (part for owner in module.modules() if isinstance(owner, owners) for part in owner.modules())
    return {part.weight for part in parts if isinstance(part, nn.LayerNorm)}


def build_optimizer(module: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """Return the optimiser of the trainable parameters of ``module``, which must be on their device already."""
    groups = parameter_groups(module, optim)
    if optim.adamw == "official":
        return TransformersAdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


class TransformersAdamW(torch.optim.Optimizer):
    """AdamW as transformers 4.8 had it, and with it the official VLMo code.

    Differs from ``torch.optim.AdamW`` in two places: ``eps`` is added to the root of the second moment before its
    bias is corrected, which shows where gradients are as small as ``eps``; and the decay comes after the step.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:  # Any: what torch.optim takes
        """``params`` are groups as :func:`parameter_groups` gives them."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  the loop has no closures
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:  # Any: torch's own group
        state, (beta1, beta2) = self._state(parameter), group["betas"]
        state["step"] += 1
        step = state["step"].item()
        first = state["exp_avg"].lerp_(gradient, 1 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        length = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        parameter.addcdiv_(first, second.sqrt().add_(group["eps"]), value=-length)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # on the CPU: reading it must not wait for the device
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Return the learning rate of the step after ``step`` done ones, of ``steps`` in all.

    It rises as step / warm-up and then falls linearly, or as half a cosine, to its floor at ``steps``, or stays.
    """
    warmup = optim.warmup if optim.warmup >= 1 else round(optim.warmup * steps)
    if step < warmup:
        return optim.lr * step / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if optim.schedule == "linear":
        return optim.min_lr + (optim.lr - optim.min_lr) * (1 - done)
    if optim.schedule == "cosine":
        return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * done)) / 2
    return optim.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all groups, each at its own rate."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["rate"]


def clip_grad_norm(module: nn.Module, limit: float) -> Tensor:
    """Scale the gradients down so that their norm over all parameters is at most ``limit``; 0 only measures.

    Gives the norm before, as a tensor on the device. Where the parameters are sharded every process must call it.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if limit > 0:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return dist.full_tensor(norm)
