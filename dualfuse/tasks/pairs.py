"""Image-text pre-training: contrast, matching, and masked words (VLMo, section 3.3; BridgeTower, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse import dist
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text import MASKING_RULES
from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.tasks.base import Output, Prep, Task, detached
from dualfuse.tasks.chunks import in_chunks
from dualfuse.tasks.contrast import Positives, Similarities, find_positives, similarities
from dualfuse.tasks.heads import Projection, Projections, WordHead, initialise, unit
from dualfuse.tasks.negatives import Chosen, Everyone, Place, choose
from dualfuse.tasks.pair_rows import PairBatch, PairRow, as_long_everywhere, identity, together


@dataclass(frozen=True)
class PairsConfig:
    """Weights and rules of the three objectives; the defaults are those of VLMo's paper."""

    contrast: float = 1.0
    match: float = 1.0
    words: float = 0.25
    """Weights of the objectives; 0 leaves one out, and the work it costs."""
    views: Literal["all", "plain"] = "all"
    """What contrast compares: also vectors of the vision-language experts, as the released code; or the plain ones."""
    projection: Projection = field(default_factory=Projection)
    """What contrast projects to."""
    negatives: Place = "all"
    """Where wrong pairs are drawn: from the pairs of all processes; from the own ones (VLMo's Table 6; BridgeTower);
    or from those of all processes that come from the same training set."""
    hardness: float = 1.0
    """How much similarity decides which wrong pair is drawn: 1 as published, 0 all alike."""
    negatives_per_pair: Literal[0, 1, 2] = 2
    """2: a wrong image and a wrong text for every pair; 1: a wrong image for one half, a wrong text for the other; 0:
    one half gets a wrong image in the place of its own (pre-training of METER and BridgeTower)."""
    match_sees_masked: bool = False
    """Match on the masked texts: right pairs then share the pass of the masked words. Not the paper's."""
    rows_at_once: int = 0
    """Rows that the model takes at a time; 0: all. A small number costs a third more work and saves much memory, and
    contrast and hard negatives still see the whole batch."""
    gather: Literal["gradient", "released"] = "gradient"
    """"released": gathered features carry no gradient, so that W processes weigh contrast 1 / W in the encoders."""
    masking: Literal["words", "tokens", "released"] = "words"
    """"tokens": each token by itself, as RoBERTa; "released": VLMo's, where padding counts as a candidate. With both a
    caption can end with no masked word."""
    mask_share: float = 0.15
    """Share of the words that is masked."""
    tags: str = ""
    """Name of a list in the samples' json (such as keywords): a third of the captions gets a few of it, and a sixth is
    a few of it alone. Empty: none."""
    initial_std: float = 0.02
    """Standard deviation of the heads' first weights; see ``Initial.std`` of the model."""

    def __post_init__(self) -> None:
        """Refuses what cannot be learnt together."""
        needs_all = self.match_sees_masked or (self.projection.fused and self.contrast > 0)
        if self.match and self.negatives_per_pair == 0 and needs_all:
            raise ValueError(
                "with negatives_per_pair=0 only half of the right pairs are fused, but match_sees_masked and "
                "projection.fused need all; set negatives_per_pair to 1 or 2"
            )

    def read(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> PairRow:
        """Draws one of the captions, masks words, and transforms the picture."""
        if not sample.texts:
            raise BrokenSample(sample.key, "it has no text")
        caption = sample.texts[rng.integers(len(sample.texts))]
        words = prep.text.encode(self._tagged(caption, sample, rng))
        hide = MASKING_RULES[self.masking]
        masked_ids, labels = hide(words, prep.text.vocabulary, prep.text.mask, rng, self.mask_share)
        return {
            "image": prep.image(sample.image, rng),
            "ids": words.ids,
            "masked_ids": masked_ids,
            "labels": labels,
            "image_id": identity(sample.image),
            "text_id": identity(caption.casefold().encode()),  # tags make no other text of it
            "source": sample.source,
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
            Projections(cfg.projection, model.width, fused_width=model.fused_width, std=cfg.initial_std)
            for _ in range(model.num_views if cfg.views == "all" else 1)
        )
        self.match_head = nn.Linear(model.fused_width, 2)
        self.word_head = WordHead(model.text_width, model.vocabulary, epsilon=model.head_epsilon, std=cfg.initial_std)
        initialise(self.match_head, cfg.initial_std)

    @property
    def views(self) -> tuple[Projections, ...]:
        """The projections of each view, the plain one first."""
        return tuple(view for view in self.projections if isinstance(view, Projections))

    def forward(self, batch: PairBatch) -> Output:
        """Embeds once, contrasts, draws negatives by similarity, fuses all combinations in one pass, and adds up."""
        batch = as_long_everywhere(batch)
        reads_whole = self.needs_similarity or (self.cfg.match > 0 and not self.cfg.match_sees_masked)
        image = self.model.embed_image(batch["image"])
        text = self.model.embed_text(batch["ids" if reads_whole else "masked_ids"], batch["mask"])

        positives = find_positives(batch["image_id"], batch["text_id"])
        vectors, similar, contrast = self.alike(image, text, positives)
        log = {"contrast": contrast, "count/false_negatives_avoided": positives.avoided}
        if not (self.cfg.match or self.cfg.words or self.contrasts_pairs):
            loss = self.cfg.contrast * contrast
            return Output(loss, detached({"loss": loss} | log))

        needs_masked = reads_whole and (self.cfg.words or self.cfg.match_sees_masked)
        masked = self.model.embed_text(batch["masked_ids"], batch["mask"]) if needs_masked else text
        passes = [(masked, image)] if self.cfg.words else []
        chosen = Chosen()
        if self.cfg.match or self.contrasts_pairs:
            seen = masked if self.cfg.match_sees_masked else text
            chosen = self.choose(batch, image, seen, similar, positives)
            passes += [] if passes and seen is masked else [chosen.right]
        rows = batch["rows"] if self.cfg.words else batch["rows"][:, :0]
        pooled, states = self.fuse([*passes, *chosen.wrong], rows)
        pooled = pooled[len(pooled) - len(chosen) :]

        if self.contrasts_pairs:
            contrast = self.contrast_with_pairs(vectors[0], pooled[: len(image)], similar, positives)
            log |= {"contrast": contrast}
        loss = self.cfg.contrast * contrast
        if self.cfg.words:
            words, accuracy = self.word_head.loss(states[: len(image)], batch["targets"])
            loss = loss + self.cfg.words * words
            log |= {"words": words, "accuracy/words": accuracy}
        if self.cfg.match:
            match, accuracies = self.matching(pooled, chosen.drawn)
            loss = loss + self.cfg.match * match
            log |= {"match": match} | accuracies
        return Output(loss, detached({"loss": loss} | log))

    @property
    def needs_similarity(self) -> bool:
        """Whether the loss depends on how alike images and texts are alone: by contrast, or by the wrong pairs."""
        return self.cfg.contrast > 0 or (self.cfg.match > 0 and self.cfg.hardness > 0)

    @property
    def contrasts_pairs(self) -> bool:
        """Whether contrast also compares with fused vectors."""
        return self.cfg.contrast > 0 and self.cfg.projection.fused

    def alike(
        self, image: Tokens, text: Tokens, positives: Positives
    ) -> tuple[list[tuple[Tensor, Tensor]], Similarities, Tensor]:
        """Gives unit vectors of every view, the plain one's similarities, and the contrastive loss of all views."""
        if not self.needs_similarity:
            nothing = torch.zeros(positives.texts_of_images.shape, device=image.mask.device)
            return [], Similarities(nothing, nothing), nothing.sum()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cfg.contrast > 0):
            vectors = self.vectors(image, text)
            similar = self.contrast(vectors)
            return vectors, similar[0], torch.stack([view.loss(positives) for view in similar]).mean()

    def vectors(self, image: Tokens, text: Tokens) -> list[tuple[Tensor, Tensor]]:
        """Gives unit vectors of images and texts, both (B, D), in every view, the plain one first."""
        views = self.model.views if self.cfg.views == "all" else self._plain_view
        of_image, of_text = (in_chunks(views, self.cfg.rows_at_once, tokens) for tokens in (image, text))
        return [
            (unit(head.image(one)), unit(head.text(other)))
            for head, one, other in zip(self.views, of_image, of_text, strict=True)
        ]

    def contrast(self, vectors: Sequence[tuple[Tensor, Tensor]]) -> list[Similarities]:
        """Compares this process's images and texts with those of all, in every view."""
        share = 1.0 if self.cfg.gather == "gradient" else 1 / dist.world()
        return [similarities(*pair, head.scale, share) for head, pair in zip(self.views, vectors, strict=True)]

    def contrast_with_pairs(
        self, vectors: tuple[Tensor, Tensor], pooled: Tensor, similar: Similarities, positives: Positives
    ) -> Tensor:
        """Gives the contrastive loss that also compares with the fused vectors (B, F) of all right pairs."""
        head, (image, text) = self.views[0], vectors
        assert head.fused is not None  # by contrasts_pairs
        pairs = dist.gather(unit(head.fused(pooled)))
        return similar.loss_with_pairs(head.scale * text @ pairs.T, head.scale * image @ pairs.T, positives)

    def _plain_view(self, tokens: Tokens) -> tuple[Tensor, ...]:
        return (self.model.encode(tokens),)

    def choose(
        self, batch: PairBatch, image: Tokens, seen: Tokens, similar: Similarities, positives: Positives
    ) -> Chosen:
        """Gives the pairs that matching tells apart; ``seen`` are the texts it sees."""
        if not self.cfg.match:
            return Chosen(((seen, image),))
        ids = "masked_ids" if self.cfg.match_sees_masked else "ids"
        everyone = Everyone(self.model, batch, image, seen, ids, self.cfg.negatives)
        per_pair, hardness = self.cfg.negatives_per_pair, self.cfg.hardness
        return choose(everyone, similar, positives, per_pair=per_pair, hardness=hardness)

    def fuse(self, passes: Sequence[tuple[Tokens, Tokens]], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Fuses (text, image) batches as one; gives pooled vectors, and the states at ``rows`` (B, R) of the first."""
        text, image = (Tokens.join([pair[side] for pair in passes]) for side in (0, 1))
        nothing = rows.new_zeros(len(text) - len(rows), rows.shape[1])
        pooled, states = in_chunks(self._fuse, self.cfg.rows_at_once, image, text, torch.cat([rows, nothing]))
        return pooled, states

    def _fuse(self, image: Tokens, text: Tokens, rows: Tensor) -> tuple[Tensor, Tensor]:
        fused = self.model.fuse(image, text, rows=rows)
        needs_pooled = self.cfg.match or self.contrasts_pairs
        return fused.pooled if needs_pooled else fused.text.new_empty(len(text), 0), fused.text

    def matching(self, pooled: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gives the mean loss over right pairs and the wrong ones that could be ``drawn``, and both accuracies."""
        logits = self.match_head(pooled).float()
        right = len(pooled) - len(drawn)
        counts = torch.cat([drawn.new_ones(right), drawn])
        is_right = torch.arange(len(pooled), device=pooled.device) < right
        losses = F.cross_entropy(logits, is_right.long(), reduction="none") * counts
        correct = (logits.argmax(1) == is_right.long()) & counts
        accuracies = {
            "accuracy/match_right": correct[:right].sum() / max(1, right),
            "accuracy/match_wrong": correct[right:].sum() / drawn.sum().clamp(min=1),
        }
        return losses.sum() / dist.mean(counts.sum().float()).clamp(min=1), accuracies

    def image_features(self, image: Tokens) -> Tensor:
        """Gives unit vectors (B, D) that :meth:`text_features` can be compared with."""
        self._check_search()
        return unit(self.views[0].image(self.model.encode(image)))

    def text_features(self, text: Tokens) -> Tensor:
        """Gives unit vectors (B, D) that :meth:`image_features` can be compared with."""
        self._check_search()
        return unit(self.views[0].text(self.model.encode(text)))

    @property
    def can_search(self) -> bool:
        """Whether contrast was learnt."""
        return self.cfg.contrast > 0

    def _check_search(self) -> None:
        if not self.can_search:
            raise ValueError(
                "this model was trained without contrast and has no vectors to search with; fine-tune it with contrast"
            )

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
