"""Image-text pre-training: contrast, matching, and masked words (VLMo, section 3.3; BridgeTower, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse import dist
from dualfuse.data.sample import Sample
from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.tasks.base import Output, Prep, Task, detached
from dualfuse.tasks.chunks import Later, Rows, in_chunks, read
from dualfuse.tasks.contrast import Positives, Similarities, find_positives, similarities
from dualfuse.tasks.dropped_patches import check_patches_kept, some_patches
from dualfuse.tasks.heads import Projection, Projections, WordHead, initialise, match_loss, unit
from dualfuse.tasks.negatives import Chosen, Draw, Everyone, Place, choose
from dualfuse.tasks.pair_reading import Masking, Reading
from dualfuse.tasks.pair_rows import PairBatch, PairRow, as_long_everywhere, together


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
    patches_kept: float = 1.0
    """Share of a picture's patches that contrast sees while it learns, drawn anew each time; fusion sees all. Below 1
    it is not the paper's, and absolute positions alone can do it."""
    rows_at_once: int = 0
    """Rows that the model takes at a time; 0: all. A small number costs a third more work and saves much memory, and
    contrast and hard negatives still see the whole batch."""
    gather: Literal["gradient", "released"] = "gradient"
    """"released": gathered features carry no gradient, so that W processes weigh contrast 1 / W in the encoders."""
    masking: Masking = "words"
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
        return Reading(self.masking, self.mask_share, self.tags).read(sample, prep, rng)

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
        check_patches_kept(cfg.patches_kept, model)
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
        image = self.reader.embed_image(batch["image"])
        text = self.reader.embed_text(batch["ids" if reads_whole else "masked_ids"], batch["mask"])

        positives = find_positives(batch["image_id"], batch["text_id"])
        vectors, similar, contrast = self.alike(image, text, positives)
        log = {"contrast": contrast, "count/false_negatives_avoided": positives.avoided}
        if not (self.cfg.match or self.cfg.words or self.contrasts_pairs):
            loss = self.cfg.contrast * contrast
            return Output(loss, detached({"loss": loss} | log))

        needs_masked = reads_whole and (self.cfg.words or self.cfg.match_sees_masked)
        masked = self.reader.embed_text(batch["masked_ids"], batch["mask"]) if needs_masked else text
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
            words, accuracy = self.word_head.loss(states[: len(image)], batch["targets"], self.cfg.rows_at_once)
            loss = loss + self.cfg.words * words
            log |= {"words": words, "accuracy/words": accuracy}
        if self.cfg.match:
            match, accuracies = self.matching(pooled, chosen.drawn)
            loss = loss + self.cfg.match * match
            log |= {"match": match} | accuracies
        return Output(loss, detached({"loss": loss} | log))

    @property
    def reader(self) -> VisionLanguageModel | Later:
        """What embeds: at once, or a few rows at a time where they are used."""
        return Later(self.model) if self.cfg.rows_at_once else self.model

    @property
    def needs_similarity(self) -> bool:
        """Whether the loss depends on how alike images and texts are alone: by contrast, or by the wrong pairs."""
        return self.cfg.contrast > 0 or (self.cfg.match > 0 and self.cfg.hardness > 0)

    @property
    def contrasts_pairs(self) -> bool:
        """Whether contrast also compares with fused vectors."""
        return self.cfg.contrast > 0 and self.cfg.projection.fused

    def alike(
        self, image: Rows, text: Rows, positives: Positives
    ) -> tuple[list[tuple[Tensor, Tensor]], Similarities, Tensor]:
        """Gives unit vectors of every view, the plain one's similarities, and the contrastive loss of all views."""
        if not self.needs_similarity:
            own, all_ = (torch.zeros(rows, 1, device=image.device) for rows in (len(image), len(positives.images)))
            return [], Similarities(own, own, all_, all_, own.sum()), own.sum()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cfg.contrast > 0):
            vectors = self.vectors(image, text)
            similar = self.contrast(vectors)
            losses = [view.loss(positives, self.cfg.rows_at_once) for view in similar]
            return vectors, similar[0], torch.stack(losses).mean()

    def vectors(self, image: Rows, text: Rows) -> list[tuple[Tensor, Tensor]]:
        """Gives unit vectors of images and texts, both (B, D), in every view, the plain one first."""
        of_image, of_text = self._views_of_images(image), in_chunks(self._views, self.cfg.rows_at_once, text)
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

    def _views(self, rows: Rows) -> tuple[Tensor, ...]:
        tokens = read(rows)
        return self.model.views(tokens) if self.cfg.views == "all" else (self.model.encode(tokens),)

    def _views_of_images(self, image: Rows) -> tuple[Tensor, ...]:
        share, at_once = self.cfg.patches_kept, self.cfg.rows_at_once
        if share == 1 or not self.training:
            return in_chunks(self._views, at_once, image)
        numbers = dist.rank() * len(image) + torch.arange(len(image), device=image.device)
        key = dist.draw_alike()
        return in_chunks(
            lambda rows, some: self._views(some_patches(read(rows), some, share, key)), at_once, image, numbers
        )

    def choose(self, batch: PairBatch, image: Rows, seen: Rows, similar: Similarities, positives: Positives) -> Chosen:
        """Gives the pairs that matching tells apart; ``seen`` are the texts it sees."""
        if not self.cfg.match:
            return Chosen(((seen, image),))
        ids = "masked_ids" if self.cfg.match_sees_masked else "ids"
        everyone = Everyone(self.reader, batch, image, seen, ids, self.cfg.negatives)
        how = Draw(self.cfg.negatives_per_pair, self.cfg.hardness, self.cfg.rows_at_once)
        return choose(everyone, similar, positives, how)

    def fuse(self, passes: Sequence[tuple[Rows, Rows]], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Fuses (text, image) batches; gives pooled vectors, and the states at ``rows`` (B, R) of the first."""
        if not self.cfg.rows_at_once:  # one batch: fewer and bigger matrix products
            text, image = (Tokens.join([read(pair[side]) for pair in passes]) for side in (0, 1))
            nothing = rows.new_zeros(len(text) - len(rows), rows.shape[1])
            return self._fuse(text, image, torch.cat([rows, nothing]))
        wanted = [rows, *(rows.new_zeros(len(text), 0) for text, _ in passes[1:])]
        parts = [
            in_chunks(self._fuse, self.cfg.rows_at_once, text, image, some)
            for (text, image), some in zip(passes, wanted, strict=True)
        ]
        return torch.cat([pooled for pooled, _ in parts]), parts[0][1]

    def _fuse(self, text: Rows, image: Rows, rows: Tensor) -> tuple[Tensor, Tensor]:
        words = read(text)
        fused = self.model.fuse(read(image), words, rows=rows)
        needs_pooled = self.cfg.match or self.contrasts_pairs
        return fused.pooled if needs_pooled else fused.text.new_empty(len(words), 0), fused.text

    def matching(self, pooled: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gives the mean loss over right pairs and the wrong ones that could be ``drawn``, and both accuracies."""
        return match_loss(self.match_head(pooled).float(), drawn)

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
