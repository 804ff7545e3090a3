"""Two gloo processes against one, and against recordings of two processes of the official code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as td
from official_vlmo import from_official
from safetensors.torch import load_file
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from dualfuse import distributed as dist
from dualfuse.losses import hard_negatives, itc
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.pretrain.pair_batch import mlm_positions
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

GOLDEN = Path(__file__).parents[2] / "golden" / "vlmo"
TINY = VLMoConfig(
    width=48,
    depth=4,
    heads=4,
    vl_expert_start=2,
    patch_size=8,
    image_size=(32, 32),
    vocab_size=101,
    text_length=20,
    drop_path=0.0,
)
draw = hard_negatives.sample_negatives


def largest(logits: torch.Tensor, allowed: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return draw(logits, allowed, torch.zeros_like(logits))


def task(cfg: PairsConfig) -> Pairs:
    built = cfg.build(TINY.build())
    built.load_state_dict(from_official(load_file(GOLDEN / "rel_state.safetensors")).tensors)
    return built


def batch(rows: slice = slice(None), longest: int = 12) -> dict[str, torch.Tensor]:
    inputs = load_file(GOLDEN / "two_rank.safetensors")
    return {
        "image": inputs["in.image"][rows],
        "ids": inputs["in.text_ids"][rows, :longest],
        "mask": inputs["in.text_masks"][rows, :longest].bool(),
        "masked_ids": inputs["in.text_ids_mlm"][rows, :longest],
        **dict(
            zip(("positions", "targets"), mlm_positions(list(inputs["in.text_labels_mlm"][rows].numpy())), strict=True)
        ),
        "image_id": torch.arange(4)[rows],
        "text_id": torch.arange(4)[rows],
    }


def own(rank: int) -> slice:
    return slice(2 * rank, 2 * rank + 2)


def on_two_ranks(work: Callable[[int], None], tmp_path: Path) -> None:
    multiprocessing.start_processes(_enter, args=(work, tmp_path / "meeting"), nprocs=2, start_method="fork")


def _enter(rank: int, work: Callable[[int], None], meeting: Path) -> None:
    torch.set_num_threads(1)
    hard_negatives.sample_negatives = largest  # in this process only: the recorded run takes the largest weight
    td.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        work(rank)
    finally:
        td.destroy_process_group()


def recorded(name: str) -> torch.Tensor:
    return load_file(GOLDEN / "two_rank.safetensors")[name]


def ours(name: str) -> str:
    return next(iter(from_official({name: torch.zeros(1)}).tensors))


def check_forward(rank: int) -> None:
    built = task(PairsConfig())
    mine = batch(own(rank))
    image, text = built.model.embed_image(mine["image"]), built.model.embed_text(mine["ids"], mine["mask"])
    similar = built.similarities(image, text)
    positives = itc.find_positives(mine["image_id"], mine["text_id"])
    own_first = [0, 1, 2, 3] if rank == 0 else [2, 3, 0, 1]
    assert_close(similar[0].image_to_text[:, own_first], recorded(f"rank{rank}.i2t_logits")[:2], atol=1e-5, rtol=1e-5)
    plain = similar[0]
    for direction, logits, positive in (
        ("t2i", plain.text_to_image, positives.images_of_texts),
        ("i2t", plain.image_to_text, positives.texts_of_images),
    ):
        weights = logits.masked_fill(positive, float("-inf")).softmax(1)[:, own_first]
        theirs = recorded(f"rank{rank}.weights_{direction}")
        assert_close(weights, theirs / theirs.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    loss = dist.all_reduce_mean(torch.stack([itc.itc_loss(view, positives) for view in similar]).mean())
    assert_close(loss, recorded(f"rank{rank}.itc_loss"), atol=1e-5, rtol=1e-5)
    assert_close(loss, recorded("full_batch_itc_loss"), atol=1e-5, rtol=1e-5)

    pairs, _ = built.itm_batch(mine, image, text, similar[0], positives)
    pooled, _ = built.fuse(pairs, mine["positions"])
    assert_close(built.itm_head(pooled), recorded(f"rank{rank}.itm_logits"), atol=1e-5, rtol=1e-5)
    output = built(mine)
    assert_close(output.log["loss/itm"], recorded(f"rank{rank}.itm_loss"), atol=1e-5, rtol=1e-5)
    # the recorded loss is the mean over the local tokens; ours is that over the tokens of all processes
    words = (mine["targets"] != -100).sum().float()
    share = dist.all_reduce_mean(words) / words
    assert_close(0.25 * output.log["loss/mlm"] * share, recorded(f"rank{rank}.mlm_loss"), atol=1e-5, rtol=1e-5)


def test_losses_of_two_processes_as_recorded(tmp_path: Path) -> None:
    on_two_ranks(check_forward, tmp_path)


def check_gradients(rank: int, gather_with_grad: bool, kind: str) -> None:
    built = task(PairsConfig(gather_with_grad=gather_with_grad, itm_weight=0.0, mlm_weight=0.0))
    for name, parameter in built.named_parameters():  # parameters without a gradient are frozen, as a recipe does
        parameter.requires_grad_(not name.startswith(("model.pooler", "itm_head", "mlm_head")))
    wrapped = DistributedDataParallel(built)  # kept alive: it synchronizes gradients
    wrapped(batch(own(rank))).loss.backward()
    names = [name for name in load_file(GOLDEN / "two_rank.safetensors") if name.startswith(kind + ".")]
    assert len(names) == 4
    gradients = {name: parameter.grad for name, parameter in built.named_parameters()}
    for name in names:
        gradient = gradients[ours(name.removeprefix(kind + "."))]
        assert_close(gradient.reshape(recorded(name).shape), recorded(name), atol=1e-5, rtol=1e-5)


def check_official_gradient(rank: int) -> None:
    check_gradients(rank, False, "ddp_mean_grad_itc")


def check_full_gradient(rank: int) -> None:
    check_gradients(rank, True, "full_batch_grad_itc")


@pytest.mark.parametrize("work", [check_official_gradient, check_full_gradient])
def test_itc_gradient_of_two_processes_as_recorded(work: Callable[[int], None], tmp_path: Path) -> None:
    on_two_ranks(work, tmp_path)


def check_whole_step(alone: Path, rank: int) -> None:
    built = task(PairsConfig())
    # the second process has shorter texts; examples are exchanged nevertheless
    wrapped = DistributedDataParallel(built)
    wrapped(batch(own(rank), longest=12 if rank == 0 else 9)).loss.backward()
    gradients = torch.load(alone, weights_only=True)
    assert len(gradients) > 80
    for name, parameter in built.named_parameters():
        assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4, msg=lambda text, name=name: name + text)


def test_gradient_of_two_processes_matches_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard_negatives, "sample_negatives", largest)
    built = task(PairsConfig())
    output = built(batch())
    assert_close(output.log["loss/itc"], recorded("full_batch_itc_loss"), atol=1e-5, rtol=1e-5)
    output.loss.backward()
    torch.save({name: parameter.grad for name, parameter in built.named_parameters()}, tmp_path / "alone.pt")
    on_two_ranks(partial(check_whole_step, tmp_path / "alone.pt"), tmp_path)


def check_exchange(rank: int) -> None:
    local = torch.arange(3 * 2).view(3, 2) + 100 * rank
    everyone = torch.cat([torch.arange(6).view(3, 2), torch.arange(6).view(3, 2) + 100])
    wanted = torch.tensor([5, 0, 3, 3, 1]) if rank == 0 else torch.tensor([2])
    assert torch.equal(dist.fetch_examples(local, wanted), everyone[wanted])
    assert torch.equal(dist.all_gather(local), everyone)
    ids, texts = torch.tensor([1, 2]) + rank, torch.tensor([7, 7 + rank])
    positives = itc.find_positives(ids, texts)  # images 1 2 | 2 3, texts 7 7 | 7 8
    wanted = [[1, 1, 1, 0], [1, 1, 1, 0]] if rank == 0 else [[1, 1, 1, 0], [0, 0, 0, 1]]
    assert positives.texts_of_images.long().tolist() == wanted
    assert positives.images_of_texts.long().tolist() == wanted
    source = torch.tensor([5, 6]) + rank
    groups = {"global": [0] * 4, "local": [0, 0, 1, 1], "source": [5, 6, 6, 7]}
    for negatives, everyone in groups.items():
        local, gathered = hard_negatives.negative_groups(negatives, source)
        assert gathered.tolist() == everyone and local.tolist() == everyone[2 * rank : 2 * rank + 2]


def test_exchange_of_examples(tmp_path: Path) -> None:
    on_two_ranks(check_exchange, tmp_path)
