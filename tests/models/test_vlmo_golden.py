"""VLMo against tensors recorded from the official code: see tests/golden/vlmo/facts.json for their origin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from official_vlmo import from_official, to_official_names
from safetensors.torch import load_file
from torch.testing import assert_close

from dualfuse.layers.embeddings import resize_positions
from dualfuse.layers.relative_bias import joint_index
from dualfuse.losses.hard_negatives import sample_negatives
from dualfuse.losses.itc import find_positives, itc_loss
from dualfuse.models.base import Tokens
from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.tasks.pretrain.pair_batch import mlm_positions
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig, normalize

GOLDEN = Path(__file__).parents[1] / "golden" / "vlmo"
FACTS = json.loads((GOLDEN / "facts.json").read_text())
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
CONFIGS = {
    "rel": TINY,
    "abs": VLMoConfig(
        **(vars(TINY) | {"positions": "absolute", "init": InitConfig(layer_scale=0.0), "text_length": 12})
    ),
}


class Golden:
    """One variant: the task with the recorded weights, the inputs and the expected outputs."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.inputs = load_file(GOLDEN / f"{variant}_inputs.safetensors")
        self.outputs = load_file(GOLDEN / f"{variant}_outputs.safetensors")
        self.state = load_file(GOLDEN / f"{variant}_state.safetensors")
        self.task: Pairs = PairsConfig().build(CONFIGS[variant].build()).eval()
        renamed = from_official(self.state)
        self.task.load_state_dict(renamed.tensors)
        self.unknown = renamed.unknown

    def check(self, name: str, value: torch.Tensor) -> None:
        """Compare with a quarter of the tolerance that was recorded, which is twenty times the rounding of float32."""
        self.close(name, value, self.outputs[name])

    def close(self, name: str, value: torch.Tensor, expected: torch.Tensor) -> None:
        """Compare with part of a recorded tensor."""
        atol, rtol = FACTS["tolerances"][f"{self.variant}_outputs"][name]
        assert_close(value.detach(), expected, atol=atol / 4, rtol=rtol / 4)

    def batch(self) -> dict[str, torch.Tensor]:
        numbers = torch.arange(4)
        return {
            "image": self.inputs["in.image"],
            "ids": self.inputs["in.text_ids"],
            "mask": self.inputs["in.text_masks"].bool(),
            "masked_ids": self.inputs["in.text_ids_mlm"],
            **dict(
                zip(
                    ("positions", "targets"),
                    mlm_positions(list(self.inputs["in.text_labels_mlm"].numpy())),
                    strict=True,
                )
            ),
            "image_id": numbers,
            "text_id": numbers,
        }

    def tokens(self) -> tuple[Tokens, Tokens]:
        model = self.task.model
        return model.embed_image(self.inputs["in.image"]), model.embed_text(
            self.inputs["in.text_ids"], self.inputs["in.text_masks"]
        )


@pytest.fixture(scope="module", params=["rel", "abs"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(autouse=True)
def largest_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded run took the largest weight instead of drawing."""
    monkeypatch.setattr(
        "dualfuse.losses.hard_negatives.sample_negatives",
        lambda logits, allowed, _: sample_negatives(logits, allowed, torch.zeros_like(logits)),
    )


def test_every_official_tensor_is_loaded(golden: Golden) -> None:
    assert {name.split(".")[0] for name in golden.unknown} == {"nlvr2", "nlvr2_classifier", "vqa_classifier"}


def test_weights_export_to_the_official_names(golden: Golden) -> None:
    back = to_official_names(golden.task.state_dict())
    assert not back.unknown
    for name, tensor in back.tensors.items():
        assert torch.equal(tensor.reshape(golden.state[name].shape), golden.state[name]), name


def hidden_states(golden: Golden, forward) -> torch.Tensor:
    states: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *args: states.append(args[-1])) for block in golden.task.model.blocks]
    forward()
    for hook in hooks:
        hook.remove()
    return states


def test_unimodal_states(golden: Golden) -> None:
    model, task = golden.task.model, golden.task
    for name, tokens in zip(("image", "text"), golden.tokens(), strict=True):
        golden.check(f"{name}.embed", tokens.states[0])
        itc_heads = [getattr(head, name) for head in task.itc_heads]
        plain, other = (normalize(head(view)) for head, view in zip(itc_heads, model.itc_features(tokens), strict=True))
        golden.check(f"{name}.itc_feat", plain)
        golden.check(f"{name}.itc_vl_feat", other)
        features = task.image_features(tokens) if name == "image" else task.text_features(tokens)
        golden.check(f"{name}.itc_feat", features)

        every = torch.arange(tokens.mask.shape[1]).expand(4, -1)
        golden.check(f"{name}.feats", model.token_states(tokens, every))
        hidden = hidden_states(golden, lambda tokens=tokens, every=every: model.token_states(tokens, every))
        golden.check(f"{name}.hidden", torch.stack(hidden))
        # 2 shared layers, then 2 layers of each expert, the last for the first token alone
        branch = hidden_states(golden, lambda tokens=tokens: model.itc_features(tokens))[4:]
        for value, expected in zip(branch, golden.outputs[f"{name}.hidden_vl_branch"], strict=True):
            golden.close(f"{name}.hidden_vl_branch", value, expected[:, : value.shape[1]])


def test_fusion(golden: Golden) -> None:
    image, text = golden.tokens()
    fused = golden.task.model.fuse(image, text)
    golden.check("fusion.pooled", fused.pooled)
    golden.check("fusion.raw_cls", fused.text[:, 0])
    golden.check("fusion.text_feats", fused.text)
    golden.check("fusion.image_feats", fused.image)
    golden.check("fusion.embed", torch.cat([text.states[0], image.states[0]], dim=1))
    hidden = hidden_states(golden, lambda: golden.task.model.fuse(image, text))
    golden.check("fusion.hidden", torch.stack(hidden))
    masked = golden.task.model.embed_text(golden.inputs["in.text_ids_mlm"], golden.inputs["in.text_masks"])
    golden.check("mlm.logits", golden.task.mlm_head(golden.task.model.fuse(image, masked).text))


def test_mlm_logits(golden: Golden) -> None:
    task, batch = golden.task, golden.batch()
    image, masked = golden.tokens()[0], task.model.embed_text(batch["masked_ids"], batch["mask"])
    golden.check("mlm.logits", task.mlm_head(task.model.fuse(image, masked).text))


def test_itc_and_hard_negatives(golden: Golden) -> None:
    task, batch = golden.task, golden.batch()
    image, text = golden.tokens()
    positive = torch.eye(4, dtype=torch.bool)
    positives = find_positives(torch.arange(4), torch.arange(4))
    plain, other = task.similarities(image, text)
    golden.check("itc.i2t_logits", plain.image_to_text)
    golden.check("itc.t2i_logits", plain.text_to_image)
    golden.check("itc.vl_i2t_logits", other.image_to_text)
    golden.check("irtr.i2t_logits", plain.image_to_text)
    golden.check("irtr.loss", itc_loss(plain, positives))
    golden.check("itc.loss", torch.stack([itc_loss(plain, positives), itc_loss(other, positives)]).mean())
    for head, name in zip(task.itc_heads, ("itc.logit_scale", "itc.logit_vl_scale"), strict=True):
        golden.check(name, head.scale[0])
    # the recorded weights are not normalized again after the diagonal is removed
    for name, logits in (("i2t", plain.image_to_text), ("t2i", plain.text_to_image)):
        weights = golden.outputs[f"itm.weights_{name}"]
        ours = logits.masked_fill(positive, float("-inf")).softmax(1)
        assert_close(ours, weights / weights.sum(1, keepdim=True), atol=2.5e-6, rtol=2.5e-5)
    zero = torch.zeros(4, 4)
    drawn = sample_negatives(plain.text_to_image, ~positive, zero)[0]
    assert drawn.tolist() == golden.outputs["itm.neg_image_index"].tolist()
    drawn = sample_negatives(plain.image_to_text, ~positive, zero)[0]
    assert drawn.tolist() == golden.outputs["itm.neg_text_index"].tolist()
    pairs, targets = task.itm_batch(batch, image, text, plain, positives)
    pooled, _ = task.fuse(pairs, batch["positions"])
    golden.check("itm.logits", task.itm_head(pooled))
    assert golden.outputs["itm.labels"].tolist() == [1] * len(pairs[0][0]) + [0] * len(targets.has_negative)
    golden.check("itm.loss", targets.loss(task.itm_head(pooled).float())[0])
    head = golden.task.match_logit(image, text)
    assert_close(head, golden.outputs["itm.logits"][:4] @ torch.tensor([-1.0, 1.0]), atol=2.5e-6, rtol=2.5e-6)


def test_losses_and_gradients(golden: Golden) -> None:
    task = golden.task
    task.zero_grad()
    output = task(golden.batch())
    golden.check("pretrain.total_loss", output.loss[0] if output.loss.ndim else output.loss)
    golden.check("mlm.loss_weighted", 0.25 * output.log["loss/mlm"])
    golden.check("itm.loss", output.log["loss/itm"])
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in task.named_parameters()}
    norms = FACTS["facts"][golden.variant]["gradient_norms"]
    ours = from_official({name: torch.tensor(norm) for name, norm in norms.items() if norm is not None}).tensors
    assert ours.keys() == gradients.keys()
    for name, norm in ours.items():
        assert_close(gradients[name].norm(), norm.reshape(()), atol=1.25e-6, rtol=5e-6)
    recorded = {name.removeprefix("grad."): value for name, value in golden.outputs.items() if name.startswith("grad.")}
    for name, value in from_official(recorded).tensors.items():
        assert_close(gradients[name], value, atol=1.25e-6, rtol=2.5e-6)


def test_relative_bias() -> None:
    golden = Golden("rel")
    bias = golden.task.model.relative_bias
    assert bias is not None
    golden.check("bias.image", bias(grid=(4, 4)))
    golden.check("bias.text", bias(text=12))
    golden.check("bias.fusion", bias(text=12, grid=(4, 4)))
    indices = {"text_imag": (12, (4, 4)), "text": (12, ()), "": (0, (4, 4))}
    for name, (text, grid) in indices.items():
        expected = golden.outputs[f"index.{name + '_' if name else ''}relative_position_index"]
        assert torch.equal(joint_index(text, grid, (4, 4), 20), expected.long())


def test_resizing_of_absolute_positions() -> None:
    golden = load_file(GOLDEN / "resize.safetensors")
    positions = resize_positions(golden["abs.src_pos_embed"], (4, 4), (6, 6))
    assert_close(positions, golden["abs.dst_pos_embed"], atol=2.5e-6, rtol=2.5e-6)
