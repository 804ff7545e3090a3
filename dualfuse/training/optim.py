"""The optimizer: parameter groups, weight decay, learning rates and their schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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


def parameter_groups(
    module: nn.Module, optim: Optim, tower_rates: Mapping[Tensor, float] | None = None
) -> list[dict[str, Any]]:  # Any: what torch.optim takes
    """Return the trainable parameters in groups of equal weight decay and learning rate multiplier (``rate``).

    ``tower_rates`` multiply the learning rates of some parameters. Each group also lists the ``names`` of its
    parameters. ``optim.decay_rule`` selects the decayed parameters:
    "matrices" are the weights of linear, convolution and embedding layers; "official" follows the official code of
    VLMo, METER and BridgeTower: all but names with "bias" and the layer norms of the model and of the MLM head, so
    that the layer norms of VLMo's experts, of CLIP and of other heads are decayed; "beit" are all parameters of two
    and more dimensions but class token and position embeddings.
    """
    decayed = {"matrices": _matrices, "official": _official, "beit": _beit}[optim.decay_rule](module)
    rates = _rates(module, optim)
    groups: dict[tuple[float, float], dict[str, Any]] = {}  # Any: see above
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            weight_decay, rate = optim.weight_decay if parameter in decayed else 0.0, rates.get(parameter, 1.0)
            rate *= (tower_rates or {}).get(parameter, 1.0)
            new = {"params": [], "names": [], "weight_decay": weight_decay, "rate": rate, "lr": optim.lr * rate}
            group = groups.setdefault((-weight_decay, rate), new)
            group["params"].append(parameter)
            group["names"].append(name)
    if not groups:
        raise DualfuseError("no parameter is trainable: let recipe.train_only match at least one, or leave it empty")
    return [groups[key] for key in sorted(groups)]


def _rates(module: nn.Module, optim: Optim) -> dict[Tensor, float]:
    """Return learning rate multipliers by parameter; the heads' multiplier does not apply to ITC's logit scale."""
    if not isinstance(module, Task):
        return {}
    heads = (part for name, head in module.named_children() if name != "model" for part in head.modules())
    layers = (layer for layer in heads if isinstance(layer, (*MATRICES, nn.LayerNorm)))
    rates: dict[Tensor, float] = {parameter: optim.head_lr_mult for layer in layers for parameter in layer.parameters()}
    for part in module.model.fusion_modules():
        rates |= dict.fromkeys(part.parameters(), optim.fusion_lr_mult)
    if optim.layer_decay != 1:
        for parameter, decay in _decay_by_depth(module.model, optim.layer_decay).items():
            rates[parameter] = rates.get(parameter, 1.0) * decay
    return rates


def _decay_by_depth(model: nn.Module, decay: float) -> dict[Tensor, float]:
    """Return ``decay`` to the power of a parameter's distance from the heads, in layers that are not frozen."""
    if not isinstance(model, VisionLanguageModel) or not 0 < decay < 1:
        raise DualfuseError(
            f"layer_decay is {decay} for a {type(model).__name__}; give a number between 0 and 1, the learning rate of "
            "each layer relative to the layer above, or 1 for equal rates; only VLMo and BridgeTower have such layers"
        )
    layers = [[p for part in parts for p in part.parameters() if p.requires_grad] for parts in model.lr_layers()]
    rates: dict[Tensor, float] = {}
    for distance, parameters in enumerate(reversed([layer for layer in layers if layer]), start=1):
        rates = dict.fromkeys(parameters, decay**distance) | rates  # one listed twice belongs to the higher layer
    return rates


def _matrices(module: nn.Module) -> set[Tensor]:
    return {layer.weight for layer in module.modules() if isinstance(layer, MATRICES)}


def _official(module: nn.Module) -> set[Tensor]:
    """Return what the official rule decays; it goes by spelling, and misses norms such as "ln_1.weight"."""
    spared = _norms(module, VisionLanguageModel, MLMHead) - _norms(module, Expert, CLIPViT)
    return {
        parameter for name, parameter in module.named_parameters() if "bias" not in name and parameter not in spared
    }


def _beit(module: nn.Module) -> set[Tensor]:
    embeddings = [part for part in module.modules() if isinstance(part, PatchEmbedding)]
    spared = {parameter for part in embeddings for parameter in part.parameters(recurse=False)}
    decayed: set[Tensor] = {parameter for parameter in module.parameters() if parameter.ndim > 1}
    return decayed - spared


def _norms(module: nn.Module, *owners: type[nn.Module]) -> set[Tensor]:
    parts = (part for owner in module.modules() if isinstance(owner, owners) for part in owner.modules())
    return {part.weight for part in parts if isinstance(part, nn.LayerNorm)}


def build_optimizer(
    module: nn.Module, optim: Optim, tower_rates: Mapping[Tensor, float] | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of the trainable parameters of ``module``, which must be on their device."""
    groups = parameter_groups(module, optim, tower_rates)
    if optim.adamw == "official":
        return TransformersAdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


class TransformersAdamW(torch.optim.Optimizer):
    """AdamW of transformers 4.8, which the official VLMo code uses.

    It differs from ``torch.optim.AdamW`` in two ways: ``eps`` is added to the root of the second moment before bias
    correction, which matters for gradients as small as ``eps``; and the weights are decayed after the step.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:  # Any: what torch.optim takes
        """``params`` are the groups that :func:`parameter_groups` returns."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  the loop has no closures
        """Update every parameter that has a gradient."""
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
    """Return the learning rate at 0-based step ``step`` of ``steps``.

    It rises linearly from 0 during the warm-up, and then falls linearly or along a half cosine to ``optim.min_lr`` at
    ``steps``, or stays constant. The decay of "poly" begins in the first step and is multiplied by the warm-up.
    """
    warmup = optim.warmup if optim.warmup >= 1 else round(optim.warmup * steps)
    if optim.schedule == "poly":
        return min(1.0, step / max(1, warmup)) * (optim.min_lr + (optim.lr - optim.min_lr) * (1 - step / steps))
    if step < warmup:
        return optim.lr * step / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if optim.plateaus:
        done = math.floor((step - warmup) * optim.plateaus / max(1, steps - warmup)) / optim.plateaus
    if optim.schedule == "linear":
        return optim.min_lr + (optim.lr - optim.min_lr) * (1 - done)
    if optim.schedule == "cosine":
        return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * done)) / 2
    return optim.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every group to ``value`` times the multiplier of the group."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["rate"]


def clip_grad_norm(module: nn.Module, limit: float) -> Tensor:
    """Clip the gradients to a total norm of ``limit`` (0: no clipping), and return the norm before clipping.

    The norm is a tensor on the device. If the parameters are sharded, all processes must call this.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if limit > 0:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return dist.full_tensor(norm)
