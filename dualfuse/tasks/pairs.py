"""Image-text pre-training: contrast, matching on hard negatives, and masked words (VLMo, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse import dist
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text import mask_words, mask_words_released
from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.tasks.base import Output, Prep, Task
from dualfuse.tasks.chunks import in_chunks
from dualfuse.tasks.contrast import (
    Positives,
    Similarities,
    draw_negatives,
    find_positives,
    own_columns,
    similarities,
)
from dualfuse.tasks.heads import Projections, WordHead, initialise, unit
from dualfuse.tasks.pair_rows import PairBatch, PairRow, as_long_everywhere, identity, together


@dataclass(frozen=True)
class PairsConfig:
    """Weights and rules of the three objectives; the defaults are the paper's."""

    contrast: float = 1.0
    match: float = 1.0
    words: float = 0.25
    """Weights of the objectives; 0 leaves one out, and the work it costs."""
    views: Literal["all", "plain"] = "all"
    """What contrast compares: also vectors of the vision-language experts, as the released code; or the plain ones."""
    negatives: Literal["all", "own"] = "all"
    """Where hard negatives are drawn: from the pairs of all processes, or from the own ones (the paper's Table 6)."""
    hardness: float = 1.0
    """How much similarity decides which wrong pair is drawn: 1 as published, 0 all alike."""
    negatives_per_pair: Literal[1, 2] = 2
    """2: a wrong image and a wrong text for every pair; 1: a wrong image for one half, a wrong text for the other."""
    match_sees_masked: bool = False
    """Match on the masked texts: right pairs then share the pass of the masked words. Not the paper's."""
    rows_at_once: int = 0
    """Rows that the model takes at a time; 0: all. A small number costs a third more work and saves much memory, and
    contrast and hard negatives still see the whole batch."""
    gather: Literal["gradient", "released"] = "gradient"
    """"released": gathered features carry no gradient, so that W processes weigh contrast 1 / W in the encoders."""
    masking: Literal["words", "released"] = "words"
    """"released": padding counts as a candidate, and a caption can end with no masked word."""
    mask_share: float = 0.15
    """Share of the words that is masked."""
    tags: str = ""
    """Name of a list in the samples' json (such as keywords): a third of the captions gets a few of it, and a sixth is
    a few of it alone. Empty: none."""
    initial_std: float = 0.02
    """Standard deviation of the heads' first weights; see ``Initial.std`` of the model."""

    def read(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> PairRow:
        """Draws one of the captions, masks words, and transforms the picture."""
        if not sample.texts:
            raise BrokenSample(sample.key, "it has no text")
        caption = sample.texts[rng.integers(len(sample.texts))]
        words = prep.text.encode(self._tagged(caption, sample, rng))
        rule = mask_words if self.masking == "words" else mask_words_released
        masked_ids, labels = rule(words, prep.text.vocabulary, prep.text.mask, rng, self.mask_share)
        return {
            "image": prep.image(sample.image, rng),
            "ids": words.ids,
            "masked_ids": masked_ids,
            "labels": labels,
            "image_id": identity(sample.image),
            "text_id": identity(caption.casefold().encode()),  # tags make no other text of it
        }

    def _tagged(self, caption: str, sample: Sample, rng: np.random.Generator) -> str:
        tags = sample.meta.get(self.tags)
        if not (isinstance(tags, list) and tags) or rng.random() < 0.5:
            return caption
        some = " ".join(map(str, rng.permutation(tags)[: rng.integers(1, 5)]))
        return some if rng.random() < 1 / 3 else f"{caption} {some}"

    def collate(self, rows: Sequence[PairRow]) -> PairBatch:
        """Pads the texts to the longest of them."""
        return together(rows)

    def build(self, model: VisionLanguageModel) -> Pairs:
        """Gives the task with fresh heads."""
        return Pairs(self, model)


class Pairs(Task):
    """Contrast, matching and masked words on one batch of pairs."""

    def __init__(self, cfg: PairsConfig, model: VisionLanguageModel) -> None:
        """Heads: one pair of projections per view, match / no match, and the word head."""
        super().__init__()
        self.cfg, self.model = cfg, model
        self.projections = nn.ModuleList(
            Projections(model.width, cfg.initial_std) for _ in range(model.num_views if cfg.views == "all" else 1)
        )
        self.match_head = nn.Linear(model.fused_width, 2)
        self.word_head = WordHead(model.fused_width, model.vocabulary, cfg.initial_std)
        initialise(self.match_head, cfg.initial_std)

    @property
    def views(self) -> tuple[Projections, ...]:
        """The projections of each view, the plain one first."""
        return tuple(view for view in self.projections if isinstance(view, Projections))

    def forward(self, batch: PairBatch) -> Output:
        """Embeds once, contrasts, draws negatives by similarity, fuses all combinations in one pass, and adds up."""
        batch = as_long_everywhere(batch)
        image = self.model.embed_image(batch["image"])
        text = self.model.embed_text(batch["ids"], batch["mask"])

        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cfg.contrast > 0):  # matching needs it anyway
            similar = self.contrast(image, text)
        positives = find_positives(batch["image_id"], batch["text_id"])
        contrast = torch.stack([view.loss(positives) for view in similar]).mean()
        log = {"contrast": contrast, "count/false_negatives_avoided": positives.avoided}
        loss = self.cfg.contrast * contrast
        if not (self.cfg.match or self.cfg.words):
            return Output(loss, {"loss": loss.detach()} | detached(log))

        needs_masked = self.cfg.words or self.cfg.match_sees_masked
        masked = self.model.embed_text(batch["masked_ids"], batch["mask"]) if needs_masked else text
        passes = [(masked, image)] if self.cfg.words else []
        wrong = Wrong((), torch.ones(0, dtype=torch.bool))
        if self.cfg.match:
            seen = masked if self.cfg.match_sees_masked else text
            wrong = self.draw_wrong(batch, image, seen, similar[0], positives)
            passes += [] if passes and seen is masked else [(seen, image)]
        rows = batch["rows"] if self.cfg.words else batch["rows"][:, :0]
        pooled, states = self.fuse([*passes, *wrong.pairs], rows)

        if self.cfg.words:
            words, accuracy = self.masked_words(states[: len(image)], batch["targets"])
            loss = loss + self.cfg.words * words
            log |= {"words": words, "accuracy/words": accuracy}
        if self.cfg.match:
            match, accuracies = self.matching(pooled[-len(image) - len(wrong.drawn) :], wrong.drawn)
            loss = loss + self.cfg.match * match
            log |= {"match": match} | accuracies
        return Output(loss, {"loss": loss.detach()} | detached(log))

    def contrast(self, image: Tokens, text: Tokens) -> list[Similarities]:
        """Compares images with texts in every view, the plain one first."""
        share = 1.0 if self.cfg.gather == "gradient" else 1 / dist.world()
        vectors = self.model.views if self.cfg.views == "all" else self._plain_view
        of_image, of_text = (in_chunks(vectors, self.cfg.rows_at_once, tokens) for tokens in (image, text))
        views = zip(self.views, of_image, of_text, strict=True)
        return [
            similarities(unit(head.image(one)), unit(head.text(other)), head.scale, share) for head, one, other in views
        ]

    def _plain_view(self, tokens: Tokens) -> tuple[Tensor, ...]:
        return (self.model.encode(tokens),)

    def draw_wrong(
        self, batch: PairBatch, image: Tokens, seen: Tokens, similar: Similarities, positives: Positives
    ) -> Wrong:
        """Gives each text a wrong image and each image a wrong text, or, with one negative per pair, half of them."""
        images_allowed, texts_allowed = ~positives.images_of_texts, ~positives.texts_of_images
        if self.cfg.negatives == "own":
            own = own_columns(len(image), images_allowed.device)
            images_allowed, texts_allowed = images_allowed & own, texts_allowed & own
        texts = images = torch.arange(len(image), device=images_allowed.device)
        if self.cfg.negatives_per_pair == 1:
            texts, images = texts.tensor_split([(len(image) + 1) // 2])
        hardness = self.cfg.hardness
        wrong_image, has_image = draw_negatives(hardness * similar.text_to_image[texts], images_allowed[texts])
        wrong_text, has_text = draw_negatives(hardness * similar.image_to_text[images], texts_allowed[images])
        if dist.world() == 1:
            drawn_images, drawn_texts = image.take(wrong_image), seen.take(wrong_text)
        else:  # only the drawn samples' inputs travel, not the pixels of all processes
            drawn_images = self.model.embed_image(dist.fetch(batch["image"], wrong_image))
            ids = batch["masked_ids"] if self.cfg.match_sees_masked else batch["ids"]
            drawn_texts = self.model.embed_text(*(dist.fetch(part, wrong_text) for part in (ids, batch["mask"])))
        pairs = ((seen.take(texts), drawn_images), (drawn_texts, image.take(images)))
        return Wrong(pairs, torch.cat([has_image, has_text]))

    def fuse(self, passes: Sequence[tuple[Tokens, Tokens]], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Fuses (text, image) batches as one; gives pooled vectors, and the states at ``rows`` (B, R) of the first."""
        text, image = (Tokens.join([pair[side] for pair in passes]) for side in (0, 1))
        nothing = rows.new_zeros(len(text) - len(rows), rows.shape[1])
        pooled, states = in_chunks(self._fuse, self.cfg.rows_at_once, image, text, torch.cat([rows, nothing]))
        return pooled, states

    def _fuse(self, image: Tokens, text: Tokens, rows: Tensor) -> tuple[Tensor, Tensor]:
        fused = self.model.fuse(image, text, rows=rows)
        return fused.pooled, fused.text

    def masked_words(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the mean loss over all masked words of all processes, and the share that was right."""
        is_masked = targets != -100
        logits, wanted = self.word_head(states[is_masked]), targets[is_masked]
        number = dist.mean(is_masked.sum().float()).clamp(min=1)
        loss = F.cross_entropy(logits.float(), wanted, reduction="sum") / number
        return loss, (logits.argmax(1) == wanted).sum() / number

    def matching(self, pooled: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gives the mean loss over right pairs and the wrong ones that could be ``drawn``, and both accuracies."""
        logits = self.match_head(pooled).float()
        right = len(pooled) - len(drawn)
        counts = torch.cat([drawn.new_ones(right), drawn])
        is_right = torch.arange(len(pooled), device=pooled.device) < right
        losses = F.cross_entropy(logits, is_right.long(), reduction="none") * counts
        correct = (logits.argmax(1) == is_right.long()) & counts
        accuracies = {
            "accuracy/match_right": correct[:right].float().mean(),
            "accuracy/match_wrong": correct[right:].sum() / drawn.sum().clamp(min=1),
        }
        return losses.sum() / dist.mean(counts.sum().float()), accuracies

    def image_features(self, image: Tokens) -> Tensor:
        """Gives unit vectors (B, D) that :meth:`text_features` can be compared with."""
        return unit(self.views[0].image(self.model.encode(image)))

    def text_features(self, text: Tokens) -> Tensor:
        """Gives unit vectors (B, D) that :meth:`image_features` can be compared with."""
        return unit(self.views[0].text(self.model.encode(text)))

    @property
    def can_match(self) -> bool:
        """Whether matching was learnt."""
        return self.cfg.match > 0

    def match_score(self, image: Tokens, text: Tokens) -> Tensor:
        """Gives the log-odds (B,) that image and text belong together; ``ValueError`` if that was not learnt."""
        if not self.can_match:
            raise ValueError("this model was trained without matching, so it cannot re-rank: leave out rerank")
        nothing = torch.zeros(len(text), 0, dtype=torch.long, device=text.mask.device)
        logits = self.match_head(self.model.fuse(image, text, rows=nothing).pooled).float()
        return logits[:, 1] - logits[:, 0]

    def rerank_score(self, cosine: Tensor, match: Tensor) -> Tensor:
        """Adds up the contrastive logit and the matching log-odds.

        Against negatives drawn by similarity (hardness 1) matching learns log p(match) - log q(contrast), so that the
        sum is log p(match). Against random ones (0) both are estimates of the same, and the sum is their mean.
        """
        return self.views[0].scale * cosine + match


@dataclass(frozen=True)
class Wrong:
    """Combinations (text, image) that do not belong together, and which of their rows could be drawn."""

    pairs: tuple[tuple[Tokens, Tokens], ...]
    drawn: Tensor


def detached(log: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the values without their gradient."""
    return {name: value.detach() for name, value in log.items()}
