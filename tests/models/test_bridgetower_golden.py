"""BridgeTower against tensors recorded from transformers: see tests/golden/bridgetower/manifest.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.convert.formats.bridgetower_hf import layout
from dualfuse.convert.formats.bridgetower_hf_config import read_config
from dualfuse.convert.rename import import_tensors, rename
from dualfuse.layers.embeddings import resize_positions
from dualfuse.layers.heads import ITCHeadConfig, normalize
from dualfuse.losses.itm import itm_loss
from dualfuse.models.base import Tokens
from dualfuse.tasks.pretrain.pair_batch import mlm_positions
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "bridgetower"
CASES = json.loads((GOLDEN / "manifest.json").read_text())["cases"]
LOSSES = {"mlm": {"mlm_weight": 1.0}, "itm": {"itm_weight": 1.0}, "itc": {"itc_weight": 1.0}}
ROUNDING = 1e-6  # the manifest compares no smaller norms


class Golden:
    """One case: the recorded weights under our names, the inputs and the expected outputs."""

    def __init__(self, case: str) -> None:
        folder = GOLDEN / case
        self.loaded = read_config(json.loads((folder / "config.json").read_text()), {})
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")
        self.norms = json.loads((folder / "grad_norms.json").read_text())
        self.recorded = CASES[case]["outputs"]
        self.layout = layout(self.loaded.model.bridge)
        self.weights = import_tensors(load_file(folder / "state_dict.safetensors"), self.layout)
        self.has_itc = "itc" in self.norms

    def task(self, **weights: float) -> Pairs:
        """Return the task with the given loss weights; the other losses are off."""
        projection = ITCHeadConfig(self.loaded.itc_width, bias=True, fused=self.has_itc)
        cfg = PairsConfig(
            itc_features="unimodal",
            itc_head=projection,
            **({"itc_weight": 0, "itm_weight": 0, "mlm_weight": 0} | weights),
        )
        task = cfg.build(self.loaded.model.build()).eval()
        incompatible = task.load_state_dict(self.weights.tensors, strict=False)
        assert not incompatible.unexpected_keys
        assert all(name.startswith("itc_heads.") and not self.has_itc for name in incompatible.missing_keys)
        return task

    def image(self, task: Pairs, name: str = "pixel_values") -> Tokens:
        return task.model.embed_image(self.inputs[name])

    def text(self, task: Pairs, mask: Tensor | None = None) -> Tokens:
        return task.model.embed_text(
            self.inputs["input_ids"], self.inputs["attention_mask"].bool() if mask is None else mask
        )

    def batch(self) -> dict[str, Tensor]:
        numbers = torch.arange(len(self.inputs["input_ids"]))
        positions, targets = mlm_positions(list(self.inputs["mlm_labels"].numpy()))
        return {
            "image": self.inputs["pixel_values"],
            "ids": self.inputs["input_ids"],
            "mask": self.inputs["attention_mask"].bool(),
            "masked_ids": self.inputs["mlm_input_ids"],
            "positions": positions,
            "targets": targets,
            "image_id": numbers,
            "text_id": numbers,
        }

    def loss(self, objective: str) -> tuple[Pairs, Tensor]:
        """Return a task with one loss, and the loss of the recorded batch."""
        task = self.task(**LOSSES[objective])
        if objective != "itm":
            return task, task(self.batch()).loss
        # the recorded pairs are positive or negative by their labels; ours are positives, then negatives
        order = self.inputs["itm_labels"].argsort(descending=True, stable=True)
        no_positions = torch.zeros(len(order), 0, dtype=torch.long)
        pooled, _ = task.fuse([(self.text(task).take(order), self.image(task).take(order))], no_positions)
        negatives = int((self.inputs["itm_labels"] == 0).sum())
        return task, itm_loss(task.itm_head(pooled), torch.ones(negatives, dtype=torch.bool))


@pytest.fixture(scope="module", params=list(CASES))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def hooked(modules: list[nn.Module], states: list[Tensor]) -> None:
    for module in modules:
        module.register_forward_hook(lambda *args: states.append(args[-1]))


def hidden_states(golden: Golden) -> dict[str, Tensor]:
    """Return the states after each layer, and the final states."""
    task = golden.task(itm_weight=1.0)
    model = task.model
    towers = {
        "text_hidden": [model.text_tower.words, *model.text_tower.layers],
        "image_hidden": [model.image_tower.norm_before, *model.image_tower.blocks],
        "cross_text": list(model.layers["text"]),
        "cross_image": list(model.layers["image"]),
    }
    states: dict[str, list[Tensor]] = {name: [] for name in towers}
    for name, modules in towers.items():
        hooked(modules, states[name])
    fused = model.fuse(golden.image(task), golden.text(task))
    outputs = {f"base.{name}.{layer}": state for name, each in states.items() for layer, state in enumerate(each)}
    return outputs | {
        "base.text_features": fused.text,
        "base.image_features": fused.image,
        "base.pooler_output": fused.pooled,
    }


def other_inputs(golden: Golden) -> dict[str, Tensor]:
    """Return outputs without text mask, and for images that are not square, whose recorded pixel mask has no effect."""
    assert (golden.inputs["nonsquare_pixel_mask"] == 0).any()
    task = golden.task(itm_weight=1.0)
    model, no_padding = task.model, torch.ones_like(golden.inputs["input_ids"], dtype=torch.bool)
    image = golden.image(task, "nonsquare_pixel_values")
    fused = model.fuse(image, golden.text(task))
    tower = model.image_tower
    return {
        "no_attention_mask.pooler_output": model.fuse(golden.image(task), golden.text(task, no_padding)).pooled,
        "nonsquare.text_features": fused.text,
        "nonsquare.image_features": fused.image,
        "nonsquare.pooler_output": fused.pooled,
        "nonsquare.position_embedding": resize_positions(tower.positions[None], tower.window, image.grid)[0],
    }


def heads(golden: Golden) -> dict[str, Tensor]:
    """Return logits, ITC features and losses."""
    task = golden.task(itm_weight=1.0, mlm_weight=1.0)
    image, text = golden.image(task), golden.text(task)
    masked = task.model.embed_text(golden.inputs["mlm_input_ids"], golden.inputs["attention_mask"])
    pooled = task.model.fuse(image, text).pooled
    outputs = {
        "mlm.logits": task.mlm_head(task.model.fuse(image, masked).text),
        "itm.logits": task.itm_head(pooled),
    } | {f"{objective}.loss": golden.loss(objective)[1] for objective in golden.norms}
    if not golden.has_itc:
        return outputs
    [similarities] = task.similarities(image, text)
    image_feature, text_feature = similarities.image, similarities.text
    fused_feature = normalize(task.feature_heads[0].fused(pooled))
    return outputs | {
        "itc.image_embeds": image_feature,
        "itc.text_embeds": text_feature,
        "itc.cross_embeds": fused_feature,
        "itc.logits": torch.stack([text_feature, image_feature, fused_feature], dim=-2),
    }


def test_every_recorded_tensor_is_loaded(golden: Golden) -> None:
    assert not golden.weights.unexpected
    assert set(golden.weights.unused) == {f"bridgetower.text_model.pooler.dense.{part}" for part in ("weight", "bias")}


@torch.no_grad()
def test_every_recorded_output(golden: Golden) -> None:
    ours = hidden_states(golden) | other_inputs(golden) | heads(golden)
    assert ours.keys() == golden.recorded.keys() == golden.outputs.keys()
    for name, value in ours.items():
        tolerance = golden.recorded[name]["tolerance"] / 4
        assert_close(
            value,
            golden.outputs[name],
            atol=tolerance,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@torch.no_grad()
def test_all_losses_in_one_step() -> None:
    """Each loss equals the loss computed alone."""
    golden = Golden("add_shared")
    log = golden.task(itc_weight=1.0, itm_weight=1.0, mlm_weight=1.0)(golden.batch()).log
    for ours, theirs in (("loss/itc", "itc.loss"), ("loss/mlm", "mlm.loss")):
        assert_close(log[ours], golden.outputs[theirs], atol=golden.recorded[theirs]["tolerance"] / 4, rtol=0)


@pytest.mark.parametrize(
    ("case", "objective"),
    [(case, name.partition(".")[0]) for case in CASES for name in CASES[case]["outputs"] if name.endswith(".loss")],
)
def test_gradients(case: str, objective: str) -> None:
    """Norms of gradients are equal, and the same parameters have none."""
    golden = Golden(case)
    norms = rename(golden.norms[objective], golden.layout.names)
    assert all("text_model.pooler" in name and golden.norms[objective][name] is None for name in norms.unknown)
    task, loss = golden.loss(objective)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in task.named_parameters()}
    others = {name for name, gradient in gradients.items() if gradient is not None} - norms.tensors.keys()
    assert not others, f"trained, but not part of the recorded model: {others}"
    for name, norm in norms.tensors.items():
        gradient = gradients[name]
        if norm is None:
            assert gradient is None or not gradient.any(), name
        else:
            assert gradient is not None, name
            assert float(gradient.norm()) == pytest.approx(norm, rel=2.5e-4, abs=ROUNDING), name
