"""MLM on text only: the loss of the official code, and several processes against one."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as td
from official_vlmo import from_official
from safetensors.torch import load_file, save_file
from tiny import WORDS, tokenizer
from torch import multiprocessing

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.pretrain.masked_text import MaskedText, MaskedTextConfig
from dualfuse.tasks.pretrain.pair_batch import mlm_positions

GOLDEN = Path(__file__).parents[2] / "golden" / "vlmo"
TINY = VLMoConfig(
    width=48,
    depth=4,
    heads=4,
    vl_expert_start=4,
    patch_size=8,
    image_size=(32, 32),
    vocab_size=101,
    text_length=20,
    drop_path=0.0,
)


def official() -> MaskedText:
    """Return the text-stage model of the official code."""
    state = load_file(GOLDEN / "beit_stage2_state.safetensors")
    stage2 = {name.removeprefix("stage2."): tensor for name, tensor in state.items() if name.startswith("stage2.")}
    task = MaskedTextConfig().build(TINY.build()).eval()
    found = from_official(stage2).tensors
    task.load_state_dict({name: tensor for name, tensor in found.items() if name in task.state_dict()})
    return task


def batch(rows: slice = slice(None)) -> dict[str, torch.Tensor]:
    inputs = load_file(GOLDEN / "beit_stage2_outputs.safetensors")
    places, targets = mlm_positions(list(inputs["in.text_labels_mlm"][rows].numpy()))
    return {
        "ids": inputs["in.text_ids_mlm"][rows],
        "mask": inputs["in.text_masks"][rows].bool(),
        "positions": places,
        "targets": targets,
    }


def test_loss_as_recorded_from_the_official_code() -> None:
    outputs = load_file(GOLDEN / "beit_stage2_outputs.safetensors")
    task, given = official(), batch()
    torch.testing.assert_close(task(given).loss, outputs["stage2.mlm_loss"], atol=1e-5, rtol=1e-5)
    states = task.model.token_states(task.model.embed_text(given["ids"], given["mask"]), given["positions"])
    logits = outputs["stage2.mlm_logits"].take_along_dim(given["positions"][..., None], dim=1)
    torch.testing.assert_close(task.mlm_head(states), logits, atol=1e-5, rtol=1e-5)
    is_masked = given["targets"] != -100
    right = (logits.argmax(-1) == given["targets"])[is_masked].float().mean()
    assert task(given).log["accuracy/mlm"] == pytest.approx(float(right))


def _on_a_rank(rank: int, port: int, folder: Path) -> None:
    td.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    task = official()
    own = slice(0, 3) if rank == 0 else slice(3, 4)  # as many words as there are on neither
    output = task(batch(own))
    output.loss.backward()
    gradients = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    save_file(gradients | {"loss": output.loss.detach()}, folder / f"{rank}.safetensors")
    td.destroy_process_group()


def test_two_processes_average_over_all_tokens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    multiprocessing.start_processes(_on_a_rank, args=(port, tmp_path), nprocs=2, start_method="fork")
    task = official()
    loss = task(batch()).loss
    loss.backward()
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    assert float((ranks[0].pop("loss") + ranks[1].pop("loss")) / 2) == pytest.approx(loss.item(), rel=1e-5)
    assert len(ranks[0]) > 30
    for name, gradient in ranks[0].items():
        torch.testing.assert_close((gradient + ranks[1][name]) / 2, task.get_parameter(name).grad, atol=1e-6, rtol=1e-4)


def test_examples_and_batches(tmp_path: Path) -> None:
    processor = Processor(ImageTransform((32, 32), None), TextTransform(12, tokenizer(tmp_path)))
    cfg, rng = MaskedTextConfig(), np.random.default_rng(0)
    rows = [cfg.read(Sample("a", b"", (" ".join(WORDS[:n]),)), processor, rng) for n in (3, 10, 12)]
    given = cfg.collate(rows)
    assert given["mask"].sum(1).tolist() == [5, 12, 12]
    assert (given["targets"] != -100).sum(1).tolist() == [1, 2, 2]
    whole = processor.text.encode(" ".join(WORDS[:10])).ids
    for row, place, target in zip(given["ids"], given["positions"], given["targets"], strict=True):
        for position, wanted in zip(place.tolist(), target.tolist(), strict=True):
            if wanted != -100:
                assert wanted == whole[position]
                row[position] = wanted
        assert row[: (row > 0).sum() - 1].tolist() == whole[: (row > 0).sum() - 1].tolist()
    with pytest.raises(BrokenSample, match="a: it has no text"):
        cfg.read(Sample("a", b""), processor, rng)
