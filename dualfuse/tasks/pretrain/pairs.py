"""Image-text pre-training: contrast, matching and masked language modeling (VLMo, section 3.3; BridgeTower, 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.evaluation.calibration import calibration_infos, measure_calibration
from dualfuse.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData, EvaluationResult, Plan
from dualfuse.layers.heads import ITCHead, ITCHeadConfig, MLMHead, init_linear, normalize
from dualfuse.layers.late_interaction import LateInteractionConfig, LateInteractionHead
from dualfuse.losses.grad_cache import Embeddings, LazyEmbeddings, grad_cache, materialize
from dualfuse.losses.hard_negatives import NegativeSource
from dualfuse.losses.itc import (
    Positives,
    Similarities,
    find_positives,
    gather_similarities,
    itc_loss,
    itc_loss_with_fused,
)
from dualfuse.losses.mlm import mlm_loss
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.metrics.recall import recall_infos
from dualfuse.models.base import Tokens, VisionLanguageModel, check_fusion
from dualfuse.tasks.base import TaskConfig, TaskOutput, detached
from dualfuse.tasks.pretrain.edited_captions import EditsConfig
from dualfuse.tasks.pretrain.itm_candidates import Fusions, ITMTargets, SinglePairs, candidate_lists, single_pairs
from dualfuse.tasks.pretrain.pair_batch import (
    Masking,
    PairBatch,
    PairExample,
    collate_pairs,
    pad_to_global_length,
    read_pair,
)
from dualfuse.tasks.pretrain.pairs_checks import check_options
from dualfuse.tasks.pretrain.pairs_evaluation import evaluate_pairs
from dualfuse.tasks.pretrain.pairs_extras import pair_extras
from dualfuse.tasks.pretrain.pairs_prediction import PairPrediction
from dualfuse.tasks.pretrain.patch_dropout import check_patch_dropout, encode_part


@dataclass(frozen=True)
class PairsConfig(TaskConfig):
    """Weights and options of ITC, ITM and MLM; the defaults are those of the VLMo paper."""

    pipeline_tag: ClassVar[str] = "feature-extraction"
    example: ClassVar[str] = 'print(predict(model, image="a.jpg", text="a red apple on a table"))'

    itc_weight: float = 1.0
    """Weight of image-text contrast in the loss; 0: not computed."""
    itm_weight: float = 1.0
    """Weight of image-text matching in the loss; 0: not computed."""
    mlm_weight: float = 0.25
    """Weight of masked language modeling in the loss; 0: not computed."""
    itc_features: Literal["all", "unimodal"] = "all"
    """Embeddings that ITC compares. unimodal: those of the two encoders; all: also those of the vision-language
    experts, as in the official code."""
    itc_head: ITCHeadConfig = field(default_factory=ITCHeadConfig)
    """Projections and logit scale of ITC."""
    negatives: NegativeSource = "global"
    """Candidates for ITM negatives. global: the pairs of all processes; local: those of the own process (VLMo, Table 6;
    BridgeTower); source: those of all processes that come from the same data set."""
    negative_hardness: float = 1.0
    """Exponent of the ITC softmax that ITM negatives are drawn from: 1, as published; 0: uniform."""
    negatives_per_pair: Literal[0, 1, 2] = 2
    """ITM negatives. 2: a negative image and a negative text for every pair; 1: a negative image for one half of the
    pairs, a negative text for the other; 0: one half of the pairs is replaced by pairs with a negative image (METER,
    BridgeTower)."""
    itm_loss: Literal["pairwise", "listwise"] = "pairwise"
    """pairwise: classify single pairs, as in the papers; listwise: find the right one among ``itm_candidates`` + 1, by
    the dual encoder's logit plus the head's log-odds, which start at 0. Over frozen towers only listwise learns."""
    itm_candidates: int = 3
    """With itm_loss listwise: wrong images of each text, and wrong texts of each image, drawn without replacement."""
    distill_weight: float = 0.0
    """With itm_loss listwise: weight of teaching the dual encoder the fused order of the candidates; 0: not taught."""
    itm_on_masked_text: bool = False
    """Whether ITM reads the masked texts, so that positive pairs share the forward pass of MLM (not in the paper)."""
    patch_dropout: float = 0.0
    """Fraction of the patches, 0 to below 1, that ITC drops at random in training; fusion reads all patches. Needs
    absolute positions (not in the paper)."""
    grad_cache_chunk: int = 0
    """Examples per forward pass with gradient caching: ITC and hard negatives still use the whole batch, with less
    memory and about a third more compute. 0: the whole batch in one pass."""
    gather_with_grad: bool = True
    """Whether the gradient of gathered ITC embeddings flows back to the process that computed them. False, as in the
    official code: it does not, so that with W processes ITC has the weight 1 / W in the encoders."""
    masking: Masking = "whole_word"
    """Unit of MLM masking. whole_word: words; token: single tokens, as RoBERTa; official: as VLMo's code, where padding
    is a candidate, too. With token and official a caption can end up without a masked token."""
    mlm_probability: float = 0.15
    """Fraction of the words or tokens that is masked."""
    tags: str = ""
    """Key of a list in the samples' JSON, such as keywords: a third of the captions is extended by some of its entries,
    and a sixth is replaced by them. Empty: captions are used as they are."""
    init_std: float = 0.02
    """Standard deviation of the initial weights of the heads."""
    late: LateInteractionConfig = field(default_factory=LateInteractionConfig)
    """Late interaction between words and patches, which aligns them before fusion. Needs itm_loss listwise."""
    edits: EditsConfig = field(default_factory=EditsConfig)
    """Edited captions as negatives, and as captions with the same meaning."""

    def __post_init__(self) -> None:
        """Validate that the options fit each other."""
        check_options(self)

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> PairExample:
        """Draw one of the captions, mask tokens, and transform the image."""
        masks = self.mlm_weight or self.itm_on_masked_text or processor.text.has_mask
        masking = self.masking if masks else None
        return read_pair(sample, processor, rng, masking, self.mlm_probability, self.tags, self.edits)

    def collate(self, examples: Sequence[PairExample]) -> PairBatch:
        """Return a batch whose texts are padded to the longest."""
        return collate_pairs(examples)

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare recall with ITC; without ITC, or with ``plan.all_metrics``, the accuracies of ITM and MLM."""
        infos, directions = list[MetricInfo](), (TEXT_TO_IMAGE, IMAGE_TO_TEXT)
        if self.itc_weight:
            reranked = (f"{name}/reranked" for name in directions if plan.rerank and self.itm_weight)
            infos += recall_infos(*directions, *reranked)
        if not self.itc_weight or plan.all_metrics:
            infos += shares("itm/*") if self.itm_weight else ()
            infos += shares("mlm/accuracy", "mlm/accuracy_other_image") if self.mlm_weight else ()
        infos += calibration_infos() if self.itc_weight and plan.all_metrics else ()
        return tuple(infos)

    def build(self, model: VisionLanguageModel) -> Pairs:
        """Return the task with freshly initialized heads."""
        return Pairs(self, model)


class Pairs(PairPrediction):
    """ITC, ITM and MLM on one batch of image-text pairs."""

    cfg: PairsConfig

    def __init__(self, cfg: PairsConfig, model: VisionLanguageModel) -> None:
        """Build an ITC head per ITC feature of the model, and with a fusion encoder the ITM head and the MLM head.

        Raises DualfuseError if the model has no fusion encoder and a loss needs one.
        """
        super().__init__()
        if cfg.itm_weight or cfg.mlm_weight or cfg.itc_head.fused:
            check_fusion(model)
        check_patch_dropout(cfg.patch_dropout, model)
        self.cfg, self.model = cfg, model
        self.itc_heads = nn.ModuleList(
            ITCHead(cfg.itc_head, model.encode_widths, fused_width=model.fused_width, std=cfg.init_std)
            for _ in range(model.num_itc_features if cfg.itc_features == "all" else 1)
        )
        if model.capabilities.fusion:
            self.itm_head = nn.Linear(model.fused_width, 2)
            self.mlm_head = MLMHead(model.text_width, model.vocab_size, epsilon=model.mlm_head_eps, std=cfg.init_std)
            init_linear(self.itm_head, cfg.init_std)
        self.start_listwise()
        late = LateInteractionHead(cfg.late, model.local_widths, std=cfg.init_std) if cfg.late.weight else None
        self.late_head = late

    def forward(self, batch: PairBatch) -> TaskOutput:
        """Return the weighted sum of the ITC, MLM and ITM losses; all fusion runs in one pass."""
        cfg, batch = self.cfg, pad_to_global_length(batch)
        reads_unmasked = self.needs_similarity or (cfg.itm_weight > 0 and not cfg.itm_on_masked_text)
        image = self.embed(self.model.embed_image, batch["image"])
        text = self.embed(self.model.embed_text, batch["ids" if reads_unmasked else "masked_ids"], batch["mask"])

        positives = find_positives(batch["image_id"], batch["text_id"])
        similarities, itc = self.contrast(image, text, positives)
        losses, metrics = {"itc": itc}, {"count/false_negatives_avoided": positives.avoided}
        extras = pair_extras(self, batch, (image, text), similarities[0], positives)
        losses, metrics = losses | extras.losses, metrics | extras.metrics

        if cfg.itm_weight or cfg.mlm_weight or self.needs_fused_features:
            needs_masked = reads_unmasked and (cfg.mlm_weight or cfg.itm_on_masked_text)
            masked = self.embed(self.model.embed_text, batch["masked_ids"], batch["mask"]) if needs_masked else text
            itm_text = masked if cfg.itm_on_masked_text else text
            itm_pairs, itm_targets = self.itm_batch(batch, image, itm_text, similarities[0], positives)
            itm_pairs, itm_targets = extras.extend(image, itm_pairs, itm_targets)
            mlm_pairs = [] if not cfg.mlm_weight or (itm_pairs and itm_text is masked) else [(masked, image)]
            positions = batch["positions"] if cfg.mlm_weight else batch["positions"][:, :0]
            pooled, states = self.fuse([*mlm_pairs, *itm_pairs], positions)
            pooled = pooled[len(mlm_pairs) * len(image) :]

            if self.needs_fused_features:
                losses["itc"] = self.contrast_with_fused(similarities[0], pooled[: len(image)], positives)
            if cfg.mlm_weight:
                states = states[: len(image)]
                losses["mlm"], accuracy = mlm_loss(self.mlm_head, states, batch["targets"], cfg.grad_cache_chunk)
                metrics["accuracy/mlm"] = accuracy
            if cfg.itm_weight:
                losses["itm"], accuracies = itm_targets.loss(self.itm_head(pooled).float())
                metrics |= accuracies

        weights = {"itc": cfg.itc_weight, "mlm": cfg.mlm_weight, "itm": cfg.itm_weight}
        weights |= {"itc_edits": cfg.edits.itc_weight, "late": cfg.late.weight}
        loss = sum((weights[name] * value for name, value in losses.items()), itc.new_zeros(()))
        log = {"loss": loss} | {f"loss/{name}": value for name, value in losses.items()} | metrics
        return TaskOutput(loss, detached(log))

    @property
    def needs_similarity(self) -> bool:
        """Whether the loss depends on image-text similarity: through ITC, or through hard negatives."""
        return self.cfg.itc_weight > 0 or (self.cfg.itm_weight > 0 and self.cfg.negative_hardness > 0)

    @property
    def needs_fused_features(self) -> bool:
        """Whether ITC also compares with fused features."""
        return self.cfg.itc_weight > 0 and self.cfg.itc_head.fused

    def embed(self, embed: Callable[..., Tokens], *inputs: Tensor) -> Embeddings:
        """Embed images or texts; with ``grad_cache_chunk``, only when they are used."""
        return LazyEmbeddings.of(embed, *inputs) if self.cfg.grad_cache_chunk else embed(*inputs)

    def contrast(self, image: Embeddings, text: Embeddings, positives: Positives) -> tuple[list[Similarities], Tensor]:
        """Return the similarities of every ITC head and the mean ITC loss; zeros if no objective needs them."""
        if not self.needs_similarity:
            zeros = torch.zeros(len(image), 1, device=image.device)
            return [gather_similarities(zeros, zeros, zeros[0])], zeros.sum()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cfg.itc_weight > 0):
            similarities = self.similarities(image, text)
            losses = [itc_loss(each, positives, self.cfg.grad_cache_chunk) for each in similarities]
            return similarities, torch.stack(losses).mean()

    def similarities(self, image: Embeddings, text: Embeddings) -> list[Similarities]:
        """Compare this process's images and texts with those of all processes, for every ITC head."""
        encoder_grad = 1.0 if self.cfg.gather_with_grad else 1 / dist.world_size()
        chunk, dropout = self.cfg.grad_cache_chunk, self.cfg.patch_dropout if self.training else 0
        images = encode_part(self._itc_features, image, dropout, chunk)
        texts = grad_cache(self._itc_features, chunk, text)
        return [
            gather_similarities(*head.project(one, other), head.scale, head.logit_bias, encoder_grad)
            for head, one, other in zip(self.feature_heads, images, texts, strict=True)
        ]

    def contrast_with_fused(self, similarities: Similarities, pooled: Tensor, positives: Positives) -> Tensor:
        """Return the ITC loss that also compares with the fused features (B, F) of all positive pairs."""
        head = self.feature_heads[0]
        assert head.fused is not None  # by needs_fused_features
        fused = dist.all_gather(normalize(head.fused(pooled)))
        text_to_pair, image_to_pair = (head.scale * x @ fused.T for x in (similarities.text, similarities.image))
        return itc_loss_with_fused(similarities.text_to_image, text_to_pair, image_to_pair, positives)

    def _itc_features(self, embeddings: Embeddings) -> tuple[Tensor, ...]:
        tokens = materialize(embeddings)
        return self.model.itc_features(tokens) if self.cfg.itc_features == "all" else (self.model.encode(tokens),)

    def itm_batch(
        self, batch: PairBatch, image: Embeddings, text: Embeddings, similarities: Similarities, positives: Positives
    ) -> tuple[Fusions, ITMTargets]:
        """Return the pairs to fuse, positives first, and what ITM learns from them."""
        if not self.cfg.itm_weight:
            nothing = SinglePairs(torch.ones(0, dtype=torch.bool))
            return [(text, image)] if self.needs_fused_features else [], nothing
        make = candidate_lists if self.cfg.itm_loss == "listwise" else single_pairs
        return make(self, batch, image, text, similarities, positives)

    def fuse(self, pairs: Sequence[tuple[Embeddings, Embeddings]], positions: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse pairs; return pooled states, and the text states at ``positions`` (B, R) of the first batch."""
        if not self.cfg.grad_cache_chunk:  # one batch: fewer and larger matrix products
            text, image = (Tokens.join([materialize(pair[side]) for pair in pairs]) for side in (0, 1))
            no_positions = positions.new_zeros(len(text) - len(positions), positions.shape[1])
            return self._fuse(text, image, torch.cat([positions, no_positions]))
        all_positions = [positions, *(positions.new_zeros(len(text), 0) for text, _ in pairs[1:])]
        parts = [
            grad_cache(self._fuse, self.cfg.grad_cache_chunk, text, image, some)
            for (text, image), some in zip(pairs, all_positions, strict=True)
        ]
        return torch.cat([pooled for pooled, _ in parts]), parts[0][1]

    def _fuse(self, text: Embeddings, image: Embeddings, positions: Tensor) -> tuple[Tensor, Tensor]:
        tokens = materialize(text)
        fused = self.model.fuse(materialize(image), tokens, positions=positions)
        needs_pooled = self.cfg.itm_weight or self.needs_fused_features
        return fused.pooled if needs_pooled else fused.text.new_empty(len(tokens), 0), fused.text

    @property
    def has_sample_results(self) -> bool:
        """Ranks of queries, which need ITC."""
        return self.can_search

    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Return recall in both directions; without ITC, or with ``plan.all_metrics``, also ITM and MLM accuracies."""
        if not self.can_search:
            return evaluate_pairs(self, data, plan)
        result = evaluate_retrieval(self, data, plan)
        if not plan.all_metrics:
            return result
        metrics = {**result.metrics, **evaluate_pairs(self, data, plan).metrics}
        if self.calibration is None:
            return replace(result, metrics=metrics)
        measured = measure_calibration(self, data, plan)
        return replace(result, metrics=metrics | dict(measured.metrics), reliability=measured.curves)
