"""Captioning: masking, loss and generation, against plain computations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import BRIDGETOWER, MODEL, WORDS, png_image, samples, tokenizer
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.tokenizer import TextTransform, load_tokenizer
from dualfuse.models.base import seq2seq_attention_mask
from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.tasks.finetune.beam_search import Beam, beam_search
from dualfuse.tasks.finetune.captioning import CaptionDecoder, Captioning, CaptioningConfig, mask_caption
from dualfuse.tasks.pretrain.pairs import PairsConfig

RELATIVE = replace(MODEL, drop_path=0.0, depth=3, vl_expert_start=2, init=InitConfig(std=0.3, layer_scale=0.0))
MODELS = {"relative": RELATIVE, "absolute": replace(RELATIVE, positions="absolute")}
MASK = 4  # of the tiny tokenizer, whose start is 2 and end 3


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTransform:
    return TextTransform(12, tokenizer(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def processor(text: TextTransform) -> Processor:
    return Processor(ImageTransform((32, 32)), text)


def built(cfg: VLMoConfig = RELATIVE, task: CaptioningConfig | None = None) -> Captioning:
    torch.manual_seed(0)
    made = (task or CaptioningConfig()).build(cfg.build())
    nn.init.normal_(made.mlm_head.decoder.weight, std=0.5)
    if made.model.state_dict().get("relative_bias.table") is not None:
        nn.init.normal_(made.model.get_parameter("relative_bias.table"), std=0.5)
    return made.eval()


def images(processor: Processor, number: int) -> Tensor:
    return torch.stack([processor.image(png_image(seed), np.random.default_rng(0)) for seed in range(number)])


@pytest.mark.parametrize(
    ("words", "share", "number"), [(3, 0.7, 4), (5, 0.6, 4), (10, 0.7, 8), (1, 0.01, 1), (2, 1, 3)]
)
def test_number_of_masked_tokens_is_that_of_beit3(text: TextTransform, words: int, share: float, number: int) -> None:
    """Mask round(share x tokens) tokens, special ones included; at least one, and never the start."""
    encoded, rng = text.encode(" ".join(WORDS[:words])), np.random.default_rng(0)
    for _ in range(20):
        chosen = mask_caption(encoded, share, rng)
        assert len(chosen) == len(set(chosen)) == number and 0 not in chosen


def test_end_token_is_masked_unless_truncated(text: TextTransform) -> None:
    rng = np.random.default_rng(0)
    whole, cut = text.encode("the red cat"), text.encode("the red cat " * 5)
    assert cut.truncated and {n for _ in range(50) for n in mask_caption(whole, 0.3, rng)} == {1, 2, 3, 4}
    assert {n for _ in range(80) for n in mask_caption(cut, 0.3, rng)} == set(range(1, 11))


def test_captions_are_drawn_at_random(processor: Processor) -> None:
    sample, rng = Sample("a", png_image(0), ("the red cat", "a big dog sleeps")), np.random.default_rng(0)
    rows = [CaptioningConfig(mask_probability=0.01).read(sample, processor, rng) for _ in range(40)]
    lengths = {len(row["ids"]) for row in rows}
    assert lengths == {5, 6} and all((row["labels"] != -100).sum() == 1 for row in rows)
    with pytest.raises(BrokenSample, match="it has no caption"):
        CaptioningConfig().read(Sample("b", png_image(0)), processor, rng)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_by_definition(processor: Processor, smoothing: float) -> None:
    """Compute all states of all texts, and select the masked ones by hand."""
    task = built(task=CaptioningConfig(label_smoothing=smoothing))
    rng = np.random.default_rng(1)
    rows = [task.cfg.read(sample, processor, rng) for sample in samples(6)]
    batch = task.cfg.collate(rows)
    found = task(batch)
    image, text = task.model.embed_image(batch["image"]), task.model.embed_text(batch["ids"], batch["mask"])
    logits = task.mlm_head(
        task.model.fuse(image, text, attention_mask=seq2seq_attention_mask(batch["ids"].shape[1], 17)).text
    )
    losses, right = [], []
    for number, row in enumerate(rows):
        for place in np.flatnonzero(row["labels"] != -100):
            logs = logits[number, place].log_softmax(0)
            losses.append(-(1 - smoothing) * logs[row["labels"][place]] - smoothing * logs.mean())
            right.append(int(logs.argmax()) == row["labels"][place])
    assert_close(found.loss, torch.stack(losses).mean())
    assert float(found.log["accuracy/mlm"]) == pytest.approx(np.mean(right))
    plain = task.mlm_head(task.model.fuse(image, text).text)
    assert not torch.allclose(plain, logits, atol=1e-3)  # the mask matters


class Plain:
    """Compute what CaptionDecoder does, without a cache."""

    def __init__(self, task: Captioning, images: Tensor) -> None:
        self.task, self.images = task, images

    def __call__(self, ids: Tensor, origin: Tensor) -> Tensor:
        self.images = self.images[origin]
        masked = torch.cat([ids, torch.full((len(ids), 1), MASK)], dim=1)
        model, length = self.task.model, masked.shape[1]
        text = model.embed_text(masked, torch.ones_like(masked))
        states = model.fuse(
            model.embed_image(self.images), text, attention_mask=seq2seq_attention_mask(length, 17)
        ).text[:, -1]
        logits = self.task.mlm_head(states)
        logits[:, [0, 2, MASK]] = -math.inf
        return logits.log_softmax(1)


@pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS)
@torch.inference_mode()
def test_cache_does_not_change_log_probabilities(cfg: VLMoConfig, processor: Processor) -> None:
    """Run a whole search, in which hypotheses are reordered, and compare the captions."""
    task, pil_images = built(cfg), images(processor, 3)
    seen = []

    def compared(ids: Tensor, origin: Tensor) -> Tensor:
        values = quick(ids, origin), plain(ids, origin)
        assert_close(*values, atol=1e-5, rtol=1e-5)
        seen.append(origin.tolist())
        return values[0]

    quick, plain = CaptionDecoder(task, task.model.embed_image(pil_images), processor.text), Plain(task, pil_images)
    beam = Beam(task.cfg.beam, task.cfg.length_penalty, processor.text.length, start=2, end=3)
    found = beam_search(compared, 3, beam)
    assert any(origin != sorted(origin) or len(set(origin)) < len(origin) for origin in seen[1:])
    for best, captions in zip(found, task.generate(pil_images, processor.text), strict=True):
        assert [processor.text.decode(each.ids) for each in best] == [each.answer for each in captions]
        assert [math.exp(each.log_probability) for each in best] == pytest.approx([e.probability for e in captions])
    assert len({captions[0].answer for captions in task.generate(pil_images, processor.text)}) > 1  # images matter


@torch.inference_mode()
def test_batch_equals_single_images(processor: Processor) -> None:
    task, pil_images = built(), images(processor, 4)
    together = task.generate(pil_images, processor.text)
    for number, captions in enumerate(together):
        [alone] = task.generate(pil_images[number : number + 1], processor.text)
        assert [each.answer for each in alone] == [each.answer for each in captions]
        assert [each.probability for each in alone] == pytest.approx([e.probability for e in captions], rel=1e-4)


def test_task_overfits_eight_images(processor: Processor) -> None:
    """After training, beam search returns the caption of each training image."""
    shown = [Sample(f"{n}", png_image(n), (f"the {WORDS[2 + n]} {WORDS[4 + n]}",)) for n in range(8)]
    torch.manual_seed(0)
    cfg = replace(RELATIVE, depth=2, vl_expert_start=1, init=InitConfig(std=0.18, layer_scale=0.0))
    task = CaptioningConfig(label_smoothing=0.0, init_std=0.18).build(cfg.build())
    optimizer, rng = torch.optim.Adam(task.parameters(), lr=4e-3), np.random.default_rng(0)
    plain = Processor(ImageTransform((32, 32), None), processor.text)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 100)
        task(task.cfg.collate([task.cfg.read(sample, plain, rng) for sample in shown * 3])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    written = task.eval().generate(torch.stack([plain.image(sample.image, rng) for sample in shown]), processor.text)
    assert [best.answer for best, *_ in written] == [sample.texts[0] for sample in shown]


def test_all_weights_are_initialised_from_pairs() -> None:
    pairs, task = PairsConfig().build(MODEL.build()).state_dict(), built(MODEL).state_dict()
    assert task.keys() <= pairs.keys() and all(value.shape == pairs[name].shape for name, value in task.items())


def test_invalid_models_and_options_are_refused(processor: Processor) -> None:
    with pytest.raises(ValueError, match=r"BridgeTower cannot generate captions: its images attend to whole texts"):
        CaptioningConfig().build(BRIDGETOWER.build())
    with pytest.raises(ValueError, match="in training mode"):
        built().train().generate(images(processor, 1), processor.text)


def test_special_and_unused_tokens_are_never_generated(processor: Processor) -> None:
    """The tiny vocabulary is smaller than the embedding table, as published ones are."""
    task = built(replace(RELATIVE, vocab_size=MODEL.vocab_size + 9))
    names = load_tokenizer(processor.text.tokenizer)
    writer = CaptionDecoder(task, task.model.embed_image(images(processor, 1)), processor.text)
    with torch.inference_mode():
        values = writer(torch.tensor([[names.start]]), torch.tensor([0]))[0]
    impossible = (~values.isfinite()).nonzero()[:, 0].tolist()
    assert impossible == [names.pad_id, names.start, names.mask_id, *range(MODEL.vocab_size, MODEL.vocab_size + 9)]
    assert values.exp().sum() == pytest.approx(1, abs=1e-5)
