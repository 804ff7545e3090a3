"""Patch dropout against images cut up by hand, on any process and in chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import BRIDGETOWER, MODEL
from torch import Tensor
from torch.testing import assert_close

from dualfuse import distributed as dist
from dualfuse.losses.hard_negatives import gumbel
from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.models.vlmo import VLMo, VLMoConfig
from dualfuse.tasks.pretrain.pair_batch import PairBatch
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig
from dualfuse.tasks.pretrain.patch_dropout import drop_patches

VLMO = replace(MODEL, positions="absolute", drop_path=0.0, vocab_size=50)
HALF = PairsConfig(patch_dropout=0.5)
PAIRS, PATCHES = 6, 16


def batch(own: slice = slice(None)) -> PairBatch:
    torch.manual_seed(0)
    ids, number = torch.randint(5, 50, (PAIRS, 8)), torch.arange(PAIRS)
    everything = {
        "image": torch.randn(PAIRS, 3, 32, 32).double(),
        "ids": ids,
        "mask": torch.arange(8) < (3 + number)[:, None],
        "masked_ids": ids.clone().index_fill_(1, torch.tensor([2]), 4),
        "positions": torch.full((PAIRS, 1), 2),
        "targets": ids[:, 2:3],
        "image_id": number,
        "text_id": number,
        "source": torch.zeros_like(number),
    }
    return {name: value[own] for name, value in everything.items()}  # type: ignore[return-value]  # the same names


def task(cfg: PairsConfig, model: VLMoConfig = VLMO) -> Pairs:
    torch.manual_seed(1)
    return cfg.build(model.build()).double()


def kept_by_hand(key: int) -> list[list[int]]:
    """Return the eight patches of each image with the largest noise, from 1; the class token is 0."""
    noise = gumbel(key, torch.arange(PAIRS), PATCHES)
    return [sorted(range(1, 1 + PATCHES), key=lambda patch: -float(row[patch - 1]))[:8] for row in noise]


def encoded_by_hand(model: VLMo, image: Tokens, kept: list[list[int]]) -> list[Tensor]:
    """Return the unimodal features of each image, encoded as a shorter sequence of patches."""
    embeddings = []
    for row, places in enumerate(kept):
        x = image.states[0][row : row + 1, [0, *sorted(places)]]
        for block in model.blocks:
            x = block(x, (("image", x.shape[1]),))
        embeddings.append(model.norm(x)[0, 0])
    return embeddings


def test_itc_reads_the_kept_patches_only() -> None:
    built, pairs = task(replace(HALF, itc_features="unimodal", itm_weight=0.0, mlm_weight=0.0)), batch()
    assert isinstance(built.model, VLMo)
    dist.seed_shared_rng(3)
    key = dist.draw_shared()
    dist.seed_shared_rng(3)
    loss = built(pairs).loss
    images = torch.stack(encoded_by_hand(built.model, built.model.embed_image(pairs["image"]), kept_by_hand(key)))
    head = built.feature_heads[0]
    seen, read = (
        head.image(images),
        head.text(built.model.encode(built.model.embed_text(pairs["ids"], pairs["mask"]))),
    )
    logits = head.scale * torch.nn.functional.cosine_similarity(seen[:, None], read[None], dim=2)
    right = torch.arange(PAIRS)
    wanted = (torch.nn.functional.cross_entropy(logits, right) + torch.nn.functional.cross_entropy(logits.T, right)) / 2
    assert_close(loss, wanted, check_dtype=False, atol=1e-5, rtol=1e-5)  # logits are float32 in the loss
    whole = built.eval()(pairs).loss
    assert abs(whole - wanted) > 1e-3  # the draw matters, and evaluation reads all patches
    assert_close(
        whole,
        task(replace(HALF, itc_features="unimodal", itm_weight=0.0, mlm_weight=0.0, patch_dropout=0.0))(pairs).loss,
    )


def test_fusion_reads_all_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    built, lengths = task(HALF), list[int]()
    fuse = built.model.fuse

    def fused(image: Tokens, text: Tokens, positions: Tensor | None = None) -> object:
        lengths.append(image.mask.shape[1])
        return fuse(image, text, positions)

    monkeypatch.setattr(built.model, "fuse", fused)
    built(batch()).loss.backward()
    assert lengths == [1 + PATCHES]
    assert all(p.grad is None or p.grad.isfinite().all() for p in built.parameters())


def test_chunks_have_the_gradient_of_the_whole_batch() -> None:
    gradients = []
    for at_once in (0, 1, 4):
        built = task(replace(HALF, grad_cache_chunk=at_once))
        dist.seed_shared_rng(2)
        built(batch()).loss.backward()
        gradients.append({name: p.grad for name, p in built.named_parameters() if p.grad is not None})
    for name, wanted in gradients[0].items():
        for found in gradients[1:]:
            assert_close(found[name], wanted, atol=1e-9, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_draw_is_independent_of_the_process_that_holds_an_image() -> None:
    image = task(HALF).model.embed_image(batch()["image"])
    together = drop_patches(image, torch.arange(PAIRS), 0.75, key=7)
    assert together.states[0].shape[:2] == together.mask.shape == (PAIRS, 1 + 4)
    for row in range(PAIRS):
        alone = drop_patches(image.take(torch.tensor([row])), torch.tensor([row]), 0.75, key=7)
        assert torch.equal(alone.states[0][0], together.states[0][row])
    again = drop_patches(image, torch.arange(PAIRS), 0.75, key=8)
    assert not torch.equal(again.states[0], together.states[0])


def test_every_patch_is_equally_likely() -> None:
    """Each of 16 patches is kept in about 2,000 of 4,000 draws, with a standard deviation of 32."""
    states = torch.arange(1 + PATCHES).expand(4000, -1)[..., None]
    image = Tokens("image", (states,), torch.ones(states.shape[:2], dtype=torch.bool), (4, 4))
    kept = drop_patches(image, torch.arange(4000), 0.5, key=1).states[0]
    counts = kept.flatten().bincount(minlength=1 + PATCHES)
    assert counts[0] == 4000 and (counts[1:] - 2000).abs().max() < 5 * 32
    assert all(len(row.unique()) == 9 for row in kept[:50])


def test_patch_dropout_zero_draws_no_random_number() -> None:
    """Recipes without patch dropout keep their random draws."""
    built, pairs = task(PairsConfig(itm_weight=0.0, mlm_weight=0.0)), batch()
    dist.seed_shared_rng(4)
    first = dist.draw_shared()
    dist.seed_shared_rng(4)
    built(pairs)
    assert dist.draw_shared() == first


@pytest.mark.parametrize("model", [MODEL.build(), BRIDGETOWER.build()], ids=["relative", "bridgetower"])
def test_models_that_need_whole_images_are_refused(model: VisionLanguageModel) -> None:
    with pytest.raises(ValueError, match=r"--model\.positions absolute, or set patch_dropout to 0"):
        HALF.build(model)


@pytest.mark.parametrize("fraction", [1.0, -1.0, 1.5])
def test_fractions_outside_of_the_range_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"give the fraction of patches to drop"):
        task(PairsConfig(patch_dropout=fraction))
