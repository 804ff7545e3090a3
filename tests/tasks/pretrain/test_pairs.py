"""The pairs task against a step of single passes, and its edge cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.testing import assert_close

from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.losses.hard_negatives import sample_negatives
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

TINY = VLMoConfig(
    width=16,
    depth=2,
    heads=2,
    vl_expert_start=1,
    patch_size=8,
    image_size=(16, 16),
    vocab_size=30,
    text_length=8,
    drop_path=0.0,
)
LENGTHS = (8, 3, 5, 8, 4, 6)


class Draws:
    """Samples negatives as the task does, and records logits and draws: images first, then texts."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.drawn: list[list[int]] = []
        self.has_any: list[list[bool]] = []

    def __call__(self, logits: Tensor, allowed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        drawn, has_any = sample_negatives(logits, allowed, noise)
        self.logits.append(logits.detach())
        self.drawn.append(drawn.tolist())
        self.has_any.append(has_any.tolist())
        return drawn, has_any


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    kept = Draws()
    monkeypatch.setattr("dualfuse.losses.hard_negatives.sample_negatives", kept)
    return kept


def build(cfg: PairsConfig, model: VLMoConfig = TINY) -> Pairs:
    """Return the task in float64, with all parameters far from their initial values."""
    torch.manual_seed(0)
    task = cfg.build(model.build()).double()
    for name, parameter in task.named_parameters():
        nn.init.normal_(parameter, std=0.3)
        if name.endswith("logit_scale"):
            nn.init.constant_(parameter, 1.0)
    return task


def batch_of(number: int = 6, images: tuple[int, ...] = (), texts: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Return pairs of the six images and captions that ``images`` and ``texts`` index."""
    generator = torch.Generator().manual_seed(1)
    image_id, text_id = torch.tensor(images or range(number)), torch.tensor(texts or range(number))
    ids = torch.randint(1, 30, (6, 8), generator=generator)
    mask = torch.arange(8) < torch.tensor(LENGTHS)[:, None]
    rows = torch.tensor([[1, 6, 7], [2, 0, 0], [1, 4, 0], [3, 0, 0], [0, 0, 0], [5, 2, 1]])
    targets = torch.tensor([[4, 5, 6], [7, -100, -100], [8, 9, -100], [9, -100, -100], [-100] * 3, [1, 2, 3]])
    pixels = torch.randn(6, 3, 16, 16, generator=generator, dtype=torch.float64)
    return {
        "image": pixels[image_id],
        "ids": (ids * mask)[text_id],
        "mask": mask[text_id],
        "masked_ids": torch.where(torch.arange(8) == 1, 29, ids * mask)[text_id],
        "positions": rows[text_id],
        "targets": targets[text_id],
        "image_id": image_id,
        "text_id": text_id,
        "source": torch.tensor([0, 0, 1, 1, 0, 1])[:number],
    }


def naive_step(task: Pairs, batch: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
    """Return the three losses, computed one pair at a time, with the negatives that were drawn."""
    cfg, model, number = task.cfg, task.model, len(batch["ids"])
    masked_match = cfg.itm_on_masked_text

    def image(row: int):
        return model.embed_image(batch["image"][row : row + 1])

    def text(row: int, masked: bool = False):
        name = "masked_ids" if masked else "ids"
        return model.embed_text(batch[name][row : row + 1], batch["mask"][row : row + 1])

    data = set(zip(batch["image_id"].tolist(), batch["text_id"].tolist(), strict=True))

    def is_pair(i: int, j: int, i_is_image: bool) -> bool:
        image_row, text_row = (i, j) if i_is_image else (j, i)
        return (int(batch["image_id"][image_row]), int(batch["text_id"][text_row])) in data

    contrast = []
    for view, head in enumerate(task.itc_heads):
        seen = [model.itc_features(image(row))[view] @ head.image.weight.T for row in range(number)]
        read = [model.itc_features(text(row))[view] @ head.text.weight.T for row in range(number)]
        seen, read = (
            [vector[0] / vector[0].square().sum().sqrt() for vector in embeddings] for embeddings in (seen, read)
        )
        for own, other in ((seen, read), (read, seen)):
            for i in range(number):
                logits = torch.stack([head.logit_scale[0].exp() * (own[i] @ other[j]) for j in range(number)])
                share = logits - logits.exp().sum().log()
                same = [j for j in range(number) if is_pair(i, j, own is seen)]
                contrast.append(-sum(share[j] for j in same) / len(same))

    words = []
    for row in range(number):
        states = model.fuse(image(row), text(row, masked=True)).text[0]
        for place, wanted in zip(batch["positions"][row].tolist(), batch["targets"][row].tolist(), strict=True):
            if wanted != -100:
                words.append(-task.mlm_head(states[place : place + 1])[0].log_softmax(0)[wanted])

    kept, own_texts, own_images = {
        0: (range(1, number, 2), range(0, number, 2), range(0)),
        1: (range(number), range(0, number, 2), range(1, number, 2)),
        2: (range(number), range(number), range(number)),
    }[cfg.negatives_per_pair]
    pairs = [(row, row, 1) for row in kept]
    pairs += [(row, drawn, 0) for row, drawn, ok in zip(own_texts, draws.drawn[0], draws.has_any[0], strict=True) if ok]
    pairs += [
        (drawn, row, 0) for row, drawn, ok in zip(own_images, draws.drawn[1], draws.has_any[1], strict=True) if ok
    ]
    match = [
        -task.itm_head(model.fuse(image(j), text(i, masked_match)).pooled)[0].log_softmax(0)[label]
        for i, j, label in pairs
    ]
    losses = {"loss/itc": contrast, "loss/mlm": words, "loss/itm": match}
    return {name: torch.stack(values).mean() for name, values in losses.items()}


CONFIGS = {
    "paper": PairsConfig(),
    "plain": PairsConfig(itc_features="unimodal"),
    "one-negative": PairsConfig(negatives_per_pair=1),
    "half": PairsConfig(negatives_per_pair=0),
    "own": PairsConfig(negatives="local"),
    "source": PairsConfig(negatives="source"),
    "match-sees-masked": PairsConfig(itm_on_masked_text=True),
    "demo": PairsConfig(itc_features="unimodal", itm_on_masked_text=True, negatives_per_pair=1),
    "weights": PairsConfig(itc_weight=0.5, itm_weight=2.0, mlm_weight=3.0),
}


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("images", [(0, 1, 2, 3, 4), (0, 1, 0, 3, 0)], ids=["unlike", "alike"])
def test_step_matches_single_passes(cfg: PairsConfig, images: tuple[int, ...], draws: Draws) -> None:
    """With five pairs and one negative per pair the halves differ in size."""
    task, batch = build(cfg), batch_of(5, images=images, texts=(5, 1, 2, 3, 4))
    output = task(batch)
    parameters = dict(task.named_parameters())
    gradients = torch.autograd.grad(output.loss, list(parameters.values()), allow_unused=True)
    wanted = naive_step(task, batch, draws)
    for name, value in wanted.items():
        assert_close(output.log[name].double(), value.detach(), atol=1e-5, rtol=1e-5)
    loss = (
        cfg.itc_weight * wanted["loss/itc"] + cfg.itm_weight * wanted["loss/itm"] + cfg.mlm_weight * wanted["loss/mlm"]
    )
    assert_close(output.loss.double(), loss, atol=1e-5, rtol=1e-5)
    assert_close(output.log["loss"], output.loss.detach())
    wanted_gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for name, ours, theirs in zip(parameters, gradients, wanted_gradients, strict=True):
        assert ours is not None and theirs is not None, name
        assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert not any(value.requires_grad for value in output.log.values())


def test_sigmoid_itc_is_the_binary_cross_entropy_of_every_pair() -> None:
    task, batch = build(PairsConfig(itc_features="unimodal", itc_head=ITCHeadConfig(loss="sigmoid"))), batch_of()
    image, text = task.model.embed_image(batch["image"]), task.model.embed_text(*text_of(batch))
    [head] = task.feature_heads
    logits = head.scale * task.image_features(image) @ task.text_features(text).T + head.logit_bias
    output = task(batch)
    signs = 2 * torch.eye(6) - 1
    assert_close(
        output.log["loss/itc"].double(), softplus(-signs * logits).sum(1).mean().detach(), atol=1e-5, rtol=1e-5
    )
    output.loss.backward()
    assert head.logit_bias is not None and head.logit_bias.grad is not None and head.logit_bias.grad.all()


def test_accuracies(draws: Draws) -> None:
    """A head with a constant prediction is right about all examples of one label."""
    task, batch = build(PairsConfig()), batch_of()
    for head, answer in ((task.itm_head, 1), (task.mlm_head.decoder, 9)):
        nn.init.zeros_(head.weight)
        head.bias.data = torch.arange(len(head.bias)).eq(answer).double()
    log = task(batch).log
    assert (log["accuracy/itm_positive"], log["accuracy/itm_negative"]) == (1, 0)
    assert log["accuracy/mlm"].item() == pytest.approx(2 / 10)  # two of the ten words are number 9
    task.itm_head.bias.data = torch.tensor([1.0, 0.0]).double()
    log = task(batch).log
    assert (log["accuracy/itm_positive"], log["accuracy/itm_negative"]) == (0, 1)


@pytest.mark.parametrize("negatives_per_pair", [1, 2])
def test_positives_are_never_drawn_as_negatives(negatives_per_pair: int, draws: Draws) -> None:
    images, texts = (0, 0, 1, 2, 2, 3), (0, 1, 2, 3, 4, 2)
    task, batch = build(PairsConfig(negatives_per_pair=negatives_per_pair)), batch_of(6, images, texts)
    output = task(batch)
    for _ in range(30):
        task(batch)
    data = set(zip(texts, images, strict=True))
    own_texts, own_images = (range(6), range(6)) if negatives_per_pair == 2 else (range(0, 6, 2), range(1, 6, 2))
    for drawn_images, drawn_texts in zip(draws.drawn[::2], draws.drawn[1::2], strict=True):
        pairs = [(texts[row], images[other]) for row, other in zip(own_texts, drawn_images, strict=True)]
        pairs += [(texts[other], images[row]) for row, other in zip(own_images, drawn_texts, strict=True)]
        assert len(pairs) == 6 * negatives_per_pair and not data & set(pairs)
    assert all(all(has_any) for has_any in draws.has_any)
    assert output.log["count/false_negatives_avoided"] == 12  # rows 0 1, 3 4, 2 5, from both sides, in both directions


def test_a_batch_of_one_image_has_no_negatives(draws: Draws) -> None:
    """All pairs share an image: no negative can be drawn, and ITM is trained on positives only."""
    task = build(PairsConfig())
    output = task(batch_of(3, images=(2, 2, 2), texts=(0, 1, 2)))
    assert not any(map(any, draws.has_any))
    batch = batch_of(3, images=(2, 2, 2), texts=(0, 1, 2))
    score = task.match_logit(task.model.embed_image(batch["image"]), task.model.embed_text(batch["ids"], batch["mask"]))
    assert_close(output.log["loss/itm"].double(), softplus(-score).mean().double(), atol=1e-5, rtol=1e-5)
    assert output.log["accuracy/itm_negative"] == 0


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_a_batch_of_one_pair_is_finite(cfg: PairsConfig) -> None:
    task = build(cfg)
    output = task(batch_of(1))
    output.loss.backward()
    assert output.loss.isfinite() and output.log["loss/itc"].abs() < 1e-6
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("width", [0, 1, 3])
def test_no_masked_token_gives_zero_mlm_loss(width: int) -> None:
    """Official masking can produce this; ``positions`` are empty, or padding only."""
    task = build(PairsConfig())
    batch = batch_of() | {"positions": torch.zeros(6, width, dtype=torch.long), "targets": torch.full((6, width), -100)}
    output = task(batch)
    output.loss.backward()
    assert output.log["loss/mlm"] == 0 and output.log["accuracy/mlm"] == 0
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters() if parameter.grad is not None)


def test_a_weight_of_zero_skips_the_objective() -> None:
    whole = build(PairsConfig())(batch_of()).log
    for skipped, head in (("itm", "itm_head"), ("mlm", "mlm_head")):
        task = build(PairsConfig(**{f"{skipped}_weight": 0.0}))
        output = task(batch_of())
        output.loss.backward()
        assert f"loss/{skipped}" not in output.log and f"accuracy/{skipped}" not in output.log
        assert all(parameter.grad is None for parameter in task.get_submodule(head).parameters())
        rest = {"loss/itc": 1.0, "loss/itm": 1.0, "loss/mlm": 0.25}
        total = sum(weight * output.log[name] for name, weight in rest.items() if name != f"loss/{skipped}")
        assert_close(output.loss.detach(), total, atol=1e-6, rtol=1e-6, check_dtype=False)
        assert_close(output.log["loss/itc"], whole["loss/itc"])
    assert_close(build(PairsConfig(itm_weight=0.0))(batch_of()).log["loss/mlm"], whole["loss/mlm"])


def test_itc_alone_does_not_fuse() -> None:
    task = build(PairsConfig(itm_weight=0.0, mlm_weight=0.0))
    calls: list[int] = []
    task.model.pooler.register_forward_hook(lambda *_: calls.append(1))
    output = task(batch_of())
    assert not calls and set(output.log) == {"loss", "loss/itc", "count/false_negatives_avoided"}
    assert_close(output.loss.detach(), output.log["loss/itc"])
    # the hook is called by fusion:
    task.model.fuse(task.model.embed_image(batch_of()["image"]), task.model.embed_text(*text_of(batch_of()))).pooled  # noqa: B018
    assert calls


def text_of(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return batch["ids"], batch["mask"]


def test_hard_negatives_without_itc(draws: Draws) -> None:
    output = build(PairsConfig(itc_weight=0.0))(batch_of())
    assert len(draws.drawn) == 2
    assert_close(output.loss.detach(), output.log["loss/itm"] + 0.25 * output.log["loss/mlm"], check_dtype=False)


def test_gather_with_grad_does_not_matter_on_one_process() -> None:
    gradients = []
    for gather_with_grad in (True, False):
        task = build(PairsConfig(gather_with_grad=gather_with_grad, itm_weight=0.0, mlm_weight=0.0))
        task(batch_of()).loss.backward()
        gradients.append({name: p.grad for name, p in task.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_features_and_scores_match_the_step(draws: Draws) -> None:
    task, batch = build(PairsConfig()), batch_of()
    output = task(batch)
    image, text = task.model.embed_image(batch["image"]), task.model.embed_text(*text_of(batch))
    images, captions = task.image_features(image), task.text_features(text)
    assert_close(images.norm(dim=1), torch.ones(6, dtype=torch.float64))
    text_to_image, image_to_text = draws.logits
    assert_close(text_to_image, (task.itc_heads[0].scale * captions @ images.T).detach())
    assert_close(image_to_text, text_to_image.T)
    right = task.match_logit(image, text)
    wrong_images, wrong_texts = (torch.tensor(drawn) for drawn in draws.drawn)
    wrong = torch.cat(
        [task.match_logit(image.take(wrong_images), text), task.match_logit(image, text.take(wrong_texts))]
    )
    losses = torch.cat([softplus(-right), softplus(wrong)])
    assert_close(output.log["loss/itm"], losses.mean().detach(), atol=1e-5, rtol=1e-5)
    assert output.log["accuracy/itm_positive"].item() == pytest.approx((right > 0).double().mean().item())
    assert output.log["accuracy/itm_negative"].item() == pytest.approx((wrong < 0).double().mean().item())
    cosine = images @ captions.T
    assert_close(task.rerank_score(cosine, right), task.itc_heads[0].scale * cosine + right)


def test_negatives_follow_the_unimodal_similarities(draws: Draws) -> None:
    """The most similar pair by far is drawn."""
    task = build(PairsConfig())
    nn.init.constant_(task.itc_heads[0].logit_scale, 50.0)
    nn.init.constant_(task.itc_heads[1].logit_scale, -50.0)
    batch = batch_of()
    for _ in range(10):
        task(batch)
    off_diagonal = [logits.masked_fill(torch.eye(6, dtype=torch.bool), float("-inf")) for logits in draws.logits[:2]]
    for number, drawn in enumerate(draws.drawn):
        best = off_diagonal[number % 2].topk(2, dim=1)
        is_clear = best.values[:, 0] - best.values[:, 1] > 12
        assert is_clear.sum() >= 3
        assert torch.equal(torch.tensor(drawn)[is_clear], best.indices[is_clear, 0])


def test_a_model_without_vision_language_experts_has_one_itc_head() -> None:
    task = build(PairsConfig(), replace(TINY, experts="shared"))
    assert len(task.itc_heads) == 1
    assert task(batch_of()).loss.isfinite()


def test_a_positive_pair_is_never_drawn_from_two_other_pairs(draws: Draws) -> None:
    """Pair 2 has the text of pair 0 and the image of pair 1: so the text of 0 with the image of 1 is positive."""
    images, texts = (0, 1, 1), (0, 1, 0)
    task = build(PairsConfig())
    for _ in range(20):
        task(batch_of(3, images, texts))
    pairs = {(texts[i], images[j]) for drawn in draws.drawn[::2] for i, j in enumerate(drawn) if draws.has_any[0][i]}
    assert not pairs & set(zip(texts, images, strict=True))


@pytest.mark.parametrize(
    ("cfg", "texts_embedded", "encoded"),
    [
        (PairsConfig(itc_weight=0.0, itm_weight=0.0), 1, 0),
        (PairsConfig(itc_weight=0.0, negative_hardness=0.0, negatives_per_pair=0), 2, 0),
        (PairsConfig(itc_weight=0.0, negative_hardness=0.0, itm_on_masked_text=True), 1, 0),
        (PairsConfig(itc_features="unimodal"), 2, 2),
        (PairsConfig(itc_features="unimodal", itc_weight=0.0), 2, 2),
    ],
    ids=["words", "random negatives", "masked texts alone", "all", "hard negatives without contrast"],
)
def test_unused_embeddings_are_not_computed(cfg: PairsConfig, texts_embedded: int, encoded: int) -> None:
    task, calls = build(cfg), {"embed_text": 0, "encode": 0}
    for name in calls:
        verb = getattr(task.model, name)

        def counted(*arguments: object, name: str = name, verb: Callable[..., object] = verb) -> object:
            calls[name] += 1
            return verb(*arguments)

        setattr(task.model, name, counted)
    task(batch_of())
    assert (calls["embed_text"], calls["encode"]) == (texts_embedded, encoded)
