"""BridgeTower and METER fine-tuning as published: VQAv2, SNLI-VE, NLVR2, and retrieval on COCO and Flickr30k.

Values are from the official scripts, and the paper's tables agree with them. Set --start-from to the pre-trained model,
--data.train to the data and --data.tokenizer to RoBERTa's tokenizer.json. All recipes use AdamW (0.9, 0.98), linear
decay, dropout 0.1 and float32; cross-modal layers have five times the learning rate, and heads a higher one.

The best model on --data.validation is kept (run.best), except on VQAv2, where the last one is: the official code trains
on the validation questions, too, and selects its best model on them. Retrieval with ITC is selected by the mean recall
after re-ranking; the official code does so on the test set, use validation images instead. Rankers are selected by the
recall over all pairs of a validation set, of some hundred images, because it is the published metric: METER's code
selects them by the accuracy of the frozen ITM head, BridgeTower's takes the last one. Questions, sentences, hypotheses
and captions are samples here as there, so that their epochs follow the data.

Images are augmented by the RandAugment of this package where the official code uses three variants. As there, crops
cover half to all of the image, VQAv2 has no flips, and METER applies RandAugment to whole images, which are then
center-cropped in training as in evaluation.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.image.transform import OFFICIAL_BLIP, OFFICIAL_CLIP, Augment
from dualfuse.recipe import Data, Recipe, Run
from dualfuse.recipes.bridgetower import BASE, ITC_ITM_MLM, LARGE, METER, OPTIM, at_data_size
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.finetune.vqa import VQAConfig

QUESTIONS = 435_174 + 210_207
"""VQAv2's training and validation questions, without those that have no answer in the vocabulary."""
SENTENCES = 86_373
"""NLVR2's training examples, as counted in a copy on the Hugging Face hub (TIGER-Lab/Mantis-Instruct)."""
HYPOTHESES = 529_527
"""SNLI-VE's training examples, as its authors count them (necla-ml/SNLI-VE)."""
COCO = 566_747
"""Captions of Karpathy's training split with restval, derived: 414,113 and 202,654 of train2014 and val2014, minus
25,010 each of validation and test. The official code skips duplicate captions of an image."""
FLICKR30K = 29_000 * 5
"""Captions of Karpathy's training split, five per image. The official runs also train on the 1,014 images of the
validation split, and so are 3.5 % longer; here these images choose the best model."""

ITC_ITM = replace(ITC_ITM_MLM, mlm_weight=0.0)
"""ITC and ITM (``irtr_itm_itc``): one checkpoint searches and re-ranks. ITC compares the pairs of all processes; hard
negatives are from the 8 or 16 pairs of one process."""

DATA = Data(image_size=(384, 384), preprocess=OFFICIAL_BLIP, text_length=50, batch_size=64, num_workers=8)
METER_AUGMENT = Augment(crop=(1.0, 1.0), flip=0.0, order="resize_last")
"""RandAugment on the whole image; then the shorter side is resized and the center is cropped, as in evaluation."""
METER_DATA = replace(DATA, preprocess=OFFICIAL_CLIP, augment=METER_AUGMENT)
RETRIEVAL = replace(DATA, text_length=40, sample_by="caption")
METER_RETRIEVAL = replace(METER_DATA, text_length=40, sample_by="caption")
"""An epoch has every caption once, as in the official code."""
RUN = Run(save_every=1000, log_every=50)

RANK = RankingConfig(itm_weight=1.0, grad_cache_chunk=64)
"""One matching text and 15 negatives per image (``irtr``, ``draw_false_text``), and ITM with a random image for half of
the pairs (``itm``, ``draw_false_image``), whose head is frozen. The two losses are added, because the official weights
switch losses on and do not scale them. The official code draws negatives from the whole set, where they may match; here
they are from a micro-batch of 32 pairs per process. 64 pairs are fused at a time."""
RANK_OPTIM = replace(OPTIM, warmup=0.1, head_lr_mult=1.0)
"""The ranking head has the learning rate of the towers, as in the official code, which does not list it as a head."""


def vqa_base() -> Recipe:
    """BridgeTower-Base on VQAv2 at 576 px, 10 epochs: test-dev 78.7; needs --task.answers."""
    optim = replace(OPTIM, lr=1e-5, weight_decay=0.05, warmup=0.06, head_lr_mult=50.0)
    data = replace(DATA, image_size=(576, 576), augment=Augment(flip=0.0), batch_size=512)
    run = replace(RUN, steps=10 * QUESTIONS // 512, epochs=10, micro_batch=16)
    return at_data_size(Recipe("vqa", BASE, VQAConfig(), data, optim, run))


def vqa_large() -> Recipe:
    """BridgeTower-Large on VQAv2 at 574 px, 10 epochs: test-dev 81.3; needs --task.answers."""
    base = vqa_base()
    data, run = replace(base.data, image_size=(574, 574)), replace(base.run, micro_batch=4)
    return at_data_size(replace(base, model=LARGE, data=data, optim=replace(base.optim, lr=4e-6), run=run))


def entailment_base() -> Recipe:
    """BridgeTower-Base on SNLI-VE at 384 px, 5 epochs: dev 81.1, test 81.2; the text is the hypothesis alone."""
    optim = replace(OPTIM, lr=3e-6, warmup=0.06, head_lr_mult=10.0)
    run = _best_epoch(5, HYPOTHESES, 64)
    return at_data_size(Recipe("entailment", BASE, EntailmentConfig(), DATA, optim, run))


def nlvr2_base() -> Recipe:
    """BridgeTower-Base on NLVR2 at 384 px, 10 epochs: dev 81.9, test-P 83.1."""
    optim = replace(OPTIM, lr=5e-6, weight_decay=0.008, warmup=0.1, head_lr_mult=10.0)
    task, run = NLVR2Config(hidden_scale=1.5, dropout=0.1), _best_epoch(10, SENTENCES, 64)
    return at_data_size(Recipe("nlvr2", replace(BASE, image_slots=2), task, DATA, optim, run))


def coco_base() -> Recipe:
    """BridgeTower-Base retrieval on COCO, 30 epochs: text R@1 75.0, image R@1 62.4 (256 re-ranked).

    The best model is that with the highest mean recall after re-ranking 256 candidates.
    """
    optim = replace(OPTIM, lr=4.5e-6, warmup=0.1)
    run = replace(_best_reranked(30, COCO, 256, rerank=256), micro_batch=16)
    return at_data_size(Recipe("coco", BASE, ITC_ITM, replace(RETRIEVAL, batch_size=256), optim, run))


def flickr30k_base() -> Recipe:
    """BridgeTower-Base retrieval on Flickr30k, 20 epochs: text R@1 94.7, image R@1 85.8 (128 re-ranked).

    The best model is that with the highest mean recall after re-ranking 128 candidates.
    """
    optim = replace(OPTIM, lr=5e-6, warmup=0.05)
    run = replace(_best_reranked(20, FLICKR30K, 512, rerank=128), micro_batch=8)
    return at_data_size(Recipe("flickr30k", BASE, ITC_ITM, replace(RETRIEVAL, batch_size=512), optim, run))


def flickr30k_base_ranking() -> Recipe:
    """BridgeTower-Base ranks all pairs of Flickr30k, 20 epochs (unpublished: the official code fails here)."""
    run = replace(_best_of(20, FLICKR30K, 2048), micro_batch=32)
    optim, data = replace(RANK_OPTIM, lr=1.1e-5), replace(RETRIEVAL, batch_size=2048)
    return at_data_size(Recipe("flickr30k", BASE, RANK, data, optim, run))


def meter_vqa_base() -> Recipe:
    """METER-Base on VQAv2 at 576 px, 10 epochs: test-dev 77.7; needs --task.answers."""
    optim = replace(OPTIM, lr=5e-6, warmup=0.1, head_lr_mult=50.0)
    data = replace(METER_DATA, image_size=(576, 576), batch_size=512)
    run = replace(RUN, steps=10 * QUESTIONS // 512, epochs=10, micro_batch=16)
    return at_data_size(Recipe("vqa", METER, VQAConfig(hidden_scale=1.0), data, optim, run))


def meter_entailment_base() -> Recipe:
    """METER-Base on SNLI-VE at 384 px, 5 epochs: dev 80.9, test 81.2."""
    optim = replace(OPTIM, lr=2e-6, warmup=0.1, head_lr_mult=10.0)
    task, run = EntailmentConfig(hidden_scale=1.0), _best_epoch(5, HYPOTHESES, 64)
    return at_data_size(Recipe("entailment", METER, task, METER_DATA, optim, run))


def meter_nlvr2_base() -> Recipe:
    """METER-Base on NLVR2 at 288 px, 10 epochs: dev 82.3, test-P 83.1; the head has no dropout."""
    optim = replace(OPTIM, lr=1e-5, warmup=0.1, head_lr_mult=10.0)
    data = replace(METER_DATA, image_size=(288, 288), batch_size=256)
    task, run = NLVR2Config(hidden_scale=1.0), _best_epoch(10, SENTENCES, 256)
    return at_data_size(Recipe("nlvr2", replace(METER, image_slots=2), task, data, optim, run))


def meter_coco_base() -> Recipe:
    """METER-Base ranks all pairs of COCO, without a dual encoder, 10 epochs: text R@1 76.2, image R@1 57.1."""
    return _meter_ranking("coco", COCO)


def meter_flickr30k_base() -> Recipe:
    """METER-Base ranks all pairs of Flickr30k, without a dual encoder, 10 epochs: text R@1 94.3, image R@1 82.2."""
    return _meter_ranking("flickr30k", FLICKR30K)


def _meter_ranking(name: str, captions: int) -> Recipe:
    data, run = replace(METER_RETRIEVAL, batch_size=512), replace(_best_of(10, captions, 512), micro_batch=32)
    return at_data_size(Recipe(name, METER, RANK, data, replace(RANK_OPTIM, lr=5e-6), run))


def _best_epoch(epochs: int, samples: int, batch: int) -> Run:
    """Return a run that keeps the model of its epochs with the best accuracy."""
    return _best_of(epochs, samples, batch, best="accuracy")


def _best_reranked(epochs: int, captions: int, batch: int, *, rerank: int) -> Run:
    """Return a run that keeps the model with the best mean of the six recalls after re-ranking."""
    return replace(_best_of(epochs, captions, batch, best="*/reranked/R@*"), eval_rerank=rerank)


def _best_of(epochs: int, samples: int, batch: int, *, best: str = "*/R@*") -> Run:
    """Return a run that keeps the best model of its epochs, by default by the mean of the six recalls."""
    steps, eval_every = epochs * samples // batch, samples // batch
    return replace(RUN, steps=steps, epochs=epochs, eval_every=eval_every, eval_epochs=1, best=best)
