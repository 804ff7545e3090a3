"""What late interaction and edited captions add to the losses and to the fused pairs of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from dualfuse.losses.grad_cache import Embeddings
from dualfuse.losses.itc import Positives, Similarities
from dualfuse.tasks.pretrain.edited_captions import Edits, edit_itc_loss, edit_logits, embed_edits
from dualfuse.tasks.pretrain.itm_candidates import Fusions, ITMTargets
from dualfuse.tasks.pretrain.late_scores import LateScores, late_edit_logits, late_loss, late_scores

if TYPE_CHECKING:
    from dualfuse.tasks.pretrain.pair_batch import PairBatch
    from dualfuse.tasks.pretrain.pairs import Pairs


@dataclass(frozen=True)
class PairExtras:
    """Late scores and edits of a batch; those that ITM does not use are None."""

    late: LateScores | None = None
    edits: Edits | None = None
    edit_logits: Tensor | None = None
    """ITC logits, plus late logits, of each image with the edits of its caption (B, E)."""
    losses: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    metrics: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def extend(self, image: Embeddings, pairs: Fusions, targets: ITMTargets) -> tuple[Fusions, ITMTargets]:
        """Return pairs and targets of ITM with edits as further negatives, scored with late interaction."""
        if self.late is not None:
            targets = targets.with_late(self.late)
        if self.edits is not None and self.edit_logits is not None:
            pairs = [*pairs, (self.edits.text, image.take(self.edits.owner))]
            targets = targets.with_edits(self.edits.exist, self.edit_logits)
        return pairs, targets


def pair_extras(
    task: Pairs, batch: PairBatch, embeddings: tuple[Embeddings, Embeddings], similarities: Similarities, pos: Positives
) -> PairExtras:
    """Compute late scores and the edits of a batch of embedded images and texts, and their losses."""
    late, edits = late_scores(task, *embeddings), embed_edits(task, batch)
    losses, metrics = dict[str, Tensor](), dict[str, Tensor]()
    if late is not None:
        losses["late"] = late_loss(late, similarities, pos)
    if edits is None:
        return PairExtras(late, None, None, losses, metrics)
    logits = edit_logits(task, edits, similarities)
    if task.cfg.edits.itc_weight:
        losses["itc_edits"], metrics["accuracy/itc_edits"] = edit_itc_loss(edits, logits, similarities)
    logits = logits if late is None else logits + late_edit_logits(task, late, edits)
    return PairExtras(late, edits if task.cfg.itm_weight else None, logits, losses, metrics)
