"""Options of training on pairs that do not fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dualfuse.errors import DualfuseError

if TYPE_CHECKING:
    from dualfuse.tasks.pretrain.pairs import PairsConfig


def check_options(cfg: PairsConfig) -> None:
    """Raise DualfuseError for options of which one needs or excludes another."""
    needs_all = cfg.itm_on_masked_text or (cfg.itc_head.fused and cfg.itc_weight > 0)
    if cfg.itm_weight and cfg.negatives_per_pair == 0 and needs_all:
        raise DualfuseError(
            "negatives_per_pair=0 fuses only half of the positive pairs, but itm_on_masked_text and itc_head.fused "
            "need all; set negatives_per_pair to 1 or 2"
        )

    if cfg.edits.number and (cfg.itm_on_masked_text or not (cfg.itm_weight or cfg.edits.itc_weight)):
        raise DualfuseError(
            "edits.number is above 0, but itm_on_masked_text is set, so that edits would be recognized by "
            "having no masks, or both itm_weight and edits.itc_weight are 0; set edits.number to 0"
        )
    if cfg.late.weight and (cfg.itm_loss != "listwise" or not cfg.itm_weight or cfg.grad_cache_chunk):
        raise DualfuseError(
            f"late.weight {cfg.late.weight} is a part of list-wise scores of a whole batch: set itm_loss to "
            "listwise, itm_weight above 0 and grad_cache_chunk 0, or late.weight to 0"
        )
    if cfg.distill_weight and (cfg.itm_loss != "listwise" or not cfg.itm_weight):
        raise DualfuseError(
            f"distill_weight {cfg.distill_weight} distils the order of the candidates of list-wise matching: set "
            "itm_loss to listwise and itm_weight above 0, or distill_weight to 0"
        )
    if cfg.itm_loss == "listwise" and (cfg.itm_candidates < 1 or not cfg.itc_weight):
        raise DualfuseError(
            f"itm_loss listwise adds to the logits of ITC: itc_weight is {cfg.itc_weight}, itm_candidates "
            f"{cfg.itm_candidates}; give an itc_weight above 0 and 1 or more candidates"
        )
