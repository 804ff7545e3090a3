"""Token-wise late interaction: each word attends to the patches of an image, without a network between them.

FILIP (arXiv 2111.07783) and ColBERT (arXiv 2004.12832) take the best patch of each word; here attention is soft, with a
learned temperature, and words are averaged with learned weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualfuse.config import check_numbers
from dualfuse.layers.heads import ITCHeadConfig, init_linear, normalize, projection


@dataclass(frozen=True)
class LateInteractionConfig:
    """Size and weight of late interaction between words and patches."""

    weight: float = 0.0
    """Weight in the loss of ITC over the late scores, alone and added to the dual encoder's; 0: no late interaction.
    Above 0, the late score is also added where candidates are matched and re-ranked."""
    width: int = 128
    """Width that words and patches are projected to."""
    hidden: int = 512
    """Width of the hidden layer of each projection; 0: one linear map."""
    dropout: float = 0.3
    """Dropout after the hidden layer."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        check_numbers(self, positive=("width",), not_negative=("weight", "hidden", "dropout"))


@dataclass(frozen=True)
class LateFeatures:
    """Unit embeddings (B, N, D) of the words or patches of B examples, and the weight (B, N) of each, which sum to 1.

    The weight of padding is 0.
    """

    tokens: Tensor
    weights: Tensor

    def take(self, index: Tensor) -> LateFeatures:
        """Return the examples ``index`` (K,)."""
        return LateFeatures(self.tokens.index_select(0, index), self.weights.index_select(0, index))


class LateInteractionHead(nn.Module):
    """Projections of words and patches, the weights of words, and the scales of attention and of the logits."""

    def __init__(self, cfg: LateInteractionConfig, widths: tuple[int, int], *, std: float = 0.02) -> None:
        """``widths`` are those of patch states and of word states; the scale of the logits starts at 1 / 0.07."""
        super().__init__()
        sizes = ITCHeadConfig(hidden=cfg.hidden, dropout=cfg.dropout, layer_norm=True, bias=True)
        self.image, self.text = (projection(sizes, width, cfg.width) for width in widths)
        self.word_weight = nn.Linear(widths[1], 1)
        self.attention_scale = nn.Parameter(torch.tensor([2.0]))
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))
        init_linear(self, std)

    @property
    def scale(self) -> Tensor:
        """The factor (1,) from late similarities to logits, at most 100."""
        return self.logit_scale.clamp(max=math.log(100.0)).exp()

    def patches(self, states: Tensor, mask: Tensor) -> LateFeatures:
        """Return the features of states (B, 1 + P, W) of images, without the class token."""
        kept = mask[:, 1:].float()
        return LateFeatures(normalize(self.image(states[:, 1:])), kept / kept.sum(1, keepdim=True))

    def words(self, states: Tensor, mask: Tensor) -> LateFeatures:
        """Return the features of states (B, T, W) of texts with ``mask`` (B, T)."""
        normed = nn.functional.layer_norm(states, states.shape[-1:])
        weights = self.word_weight(normed)[..., 0].float().masked_fill(~mask, -torch.inf).softmax(1)
        return LateFeatures(normalize(self.text(states)), weights)

    def all_pairs(self, words: LateFeatures, patches: LateFeatures) -> Tensor:
        """Return the similarities (B, N) of B texts with N images."""
        cosine = torch.einsum("btd,npd->bntp", words.tokens, patches.tokens)
        return (self._attended(cosine) * words.weights[:, None]).sum(2)

    def pairs(self, words: LateFeatures, patches: LateFeatures) -> Tensor:
        """Return the similarities (B,) of texts and images at the same place."""
        cosine = words.tokens @ patches.tokens.transpose(1, 2)
        return (self._attended(cosine) * words.weights).sum(1)

    def _attended(self, cosine: Tensor) -> Tensor:
        """Return the mean (..., T) of the cosines (..., T, P) of each word, weighted by their softmax."""
        return ((self.attention_scale.exp() * cosine).softmax(-1) * cosine).sum(-1)
