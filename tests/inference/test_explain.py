"""Heat maps: recorded attention, rollout as a product of matrices, and models whose attention is set by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import BRIDGETOWER as TINY_TOWERS
from tiny import MODEL, png_image, tokenizer
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse import hub
from dualfuse.cli import explain as explain_command
from dualfuse.errors import DualfuseError
from dualfuse.inference.attention_maps import Recorded, record_attention
from dualfuse.inference.explain import HOT, WHOLE, Explanation, explain, heat_map_grid
from dualfuse.layers.attention_flow import AttentionFlow, rollout
from dualfuse.layers.bridges import Bridge
from dualfuse.models.base import ModelConfig, VisionLanguageModel
from dualfuse.models.bridgetower import BridgeTower
from dualfuse.models.towers.base import Tower
from dualfuse.models.towers.roberta import Roberta
from dualfuse.models.vlmo import InitConfig, VLMo
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.classification import PairClassification
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

VLMO = replace(MODEL, depth=3, image_slots=2, drop_path=0.0, init=InitConfig(std=0.3, layer_scale=0.0))
BRIDGETOWER = replace(
    TINY_TOWERS,
    image=replace(TINY_TOWERS.image, depth=3),
    text=replace(TINY_TOWERS.text, depth=3),
    image_slots=2,
    init_std=0.3,
)
MODELS: dict[str, ModelConfig] = {
    "vlmo": VLMO,
    "vlmo-separate": replace(VLMO, separate_attention_until=1),
    "vlmo-absolute": replace(VLMO, positions="absolute"),
    "bridgetower": BRIDGETOWER,
    "bridgetower-attending-bridges": replace(BRIDGETOWER, bridge="cross_attention_mlp"),
    "bridgetower-one-plain-layer": replace(BRIDGETOWER, layers=3, tower_layers=(2, 0)),
    "meter": replace(BRIDGETOWER, bridge="none"),
    "meter-all-layers": replace(BRIDGETOWER, bridge="none", all_layers=True),
}
TEXT, WORDS = "the red cat", 5  # with both special tokens
SIDE = 4
PATCHES = 1 + SIDE * SIDE


def built(cfg: ModelConfig) -> VisionLanguageModel:
    torch.manual_seed(0)
    model = cfg.build().eval()
    assert isinstance(model, VisionLanguageModel)
    return model


def saved(folder: Path, task: TaskConfig, model: ModelConfig) -> hub.LoadedModel:
    torch.manual_seed(0)
    data = Data(image_size=(32, 32), text_length=12, tokenizer=tokenizer(folder / "words"))
    recipe = Recipe(name="tiny", model=model, task=task, data=data)
    hub.save(folder / "model", recipe.build(), recipe)
    return hub.load(folder / "model")


def fuse(model: VisionLanguageModel) -> Tensor:
    """Two pairs, the second text shorter."""
    torch.manual_seed(1)
    ids = torch.randint(5, MODEL.vocab_size, (2, WORDS))
    mask = torch.tensor([[True] * WORDS, [True] * 3 + [False] * 2])
    image = model.embed_image(torch.randn(2, 3, 32, 32))
    return model.fuse(image, model.embed_text(ids, mask)).pooled


@pytest.mark.parametrize("name", MODELS)
def test_recording_does_not_change_outputs(name: str) -> None:
    model = built(MODELS[name])
    plain = fuse(model)
    with record_attention(model) as recorded:
        assert_close(fuse(model), plain, rtol=1e-4, atol=1e-5)
    number = sum(map(len, recorded.values()))
    fuse(model)
    assert sum(map(len, recorded.values())) == number > 0  # nothing is recorded after the context
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for probabilities in (each for runs in recorded.values() for each in runs):
        assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))


@pytest.mark.parametrize("name", ["vlmo", "bridgetower"])
def test_recorded_is_softmax_of_queries_and_keys(name: str) -> None:
    """Compare head by head for a layer of fusion, with padding (and VLMo's relative bias)."""
    model, inputs = built(MODELS[name]), []
    module = model.get_submodule("blocks.1.attention.shared" if name == "vlmo" else "layers.image.0.cross_attention")
    module.register_forward_pre_hook(lambda _, given: inputs.append(given))
    with torch.no_grad(), record_attention(model) as recorded:
        fuse(model)
    x, context, mask, bias = unpacked(module, inputs[0])
    query, key = projected(module, x, context)
    [probabilities] = recorded[module]
    size = query.shape[-1] // 2
    for row in range(2):
        for head in range(2):
            part = slice(head * size, (head + 1) * size)
            for q in range(query.shape[1]):
                scores = [
                    float(query[row, q, part] @ key[row, k, part]) / math.sqrt(size) + float(bias[head, q, k])
                    for k in range(key.shape[1])
                ]
                powers = [math.exp(score) * bool(mask[row, k]) for k, score in enumerate(scores)]
                expected = torch.tensor([power / sum(powers) for power in powers])
                assert_close(probabilities[row, head, q], expected, rtol=1e-4, atol=1e-5)


def unpacked(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if hasattr(module, "qkv"):
        x, mask, bias, rows, _ = given
        assert rows is None
        return x, x, mask, bias.detach()
    x, context, mask = given
    return x, context, mask, torch.zeros(2, x.shape[1], context.shape[1])


@torch.no_grad()
def projected(module: nn.Module, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    if hasattr(module, "qkv"):
        width = x.shape[-1]
        return x @ module.qkv.weight[:width].T + module.q_bias, context @ module.qkv.weight[width : 2 * width].T
    return module.query(x), module.key(context)


def followed(model: VisionLanguageModel, recorded: Recorded) -> tuple[Tensor, Tensor]:
    """Return the relevance of text and image by rollout, for the first pair."""
    identity = torch.eye(WORDS + PATCHES)
    flow = AttentionFlow(lambda module: recorded[module][0][0].mean(0), rollout)
    return model.attention_flow(flow, identity[:WORDS], identity[WORDS:])


@pytest.mark.parametrize("name", MODELS)
def test_rollout_rows_sum_to_one(name: str) -> None:
    model = built(MODELS[name])
    with torch.no_grad(), record_attention(model) as recorded:
        fuse(model)
    text, image = followed(model, recorded)
    assert text.shape == (WORDS, WORDS + PATCHES)
    assert image.shape == (PATCHES, WORDS + PATCHES)
    relevance = torch.cat([text, image])
    assert_close(relevance.sum(1), torch.ones(len(relevance)))
    assert (relevance > 0).any(0).all()
    assert (text[:, WORDS:] > 0).all()  # every word has attended to every patch


def test_rollout_is_a_product_of_matrices() -> None:
    model = built(MODELS["vlmo"])
    assert isinstance(model, VLMo)
    with torch.no_grad(), record_attention(model) as recorded:
        fuse(model)
    product = np.eye(WORDS + PATCHES)
    for block in model.blocks:
        attention = recorded[block.get_submodule("attention.shared")][0][0].double().numpy().mean(0)
        product = (0.5 * attention + 0.5 * np.eye(len(attention))) @ product
    text, image = followed(model, recorded)
    assert_close(torch.cat([text, image]), torch.tensor(product, dtype=torch.float32))


def test_training_mode_is_refused() -> None:
    model = built(replace(BRIDGETOWER, dropout=0.5)).train()
    with record_attention(model), pytest.raises(ValueError, match="training mode"):
        fuse(model)


def direction(x: Tensor, wanted: int) -> Tensor:
    """Return a vector (D,) whose product with the states x (N, D) is 1 at one of them and 0 at all others."""
    return torch.linalg.pinv(x) @ torch.eye(len(x))[wanted]


def captured(model: hub.LoadedModel, module: nn.Module, number: int) -> Tensor:
    """Return the states (N, D) that a module reads while the image is explained."""
    given: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: given.append(inputs[number].detach()))
    explain(model, png_image(1), TEXT)
    handle.remove()
    return given[0][0]


@torch.no_grad()
def attend_along(module: nn.Module, vector: Tensor) -> None:
    """Make every query of every head attend along ``vector``."""
    if hasattr(module, "qkv"):
        width = len(vector)
        query, key, bias = module.qkv.weight[:width], module.qkv.weight[width : 2 * width], module.q_bias
    else:
        query, key, bias = module.query.weight, module.key.weight, module.query.bias
        module.key.bias.zero_()
    for each in (query, key, bias):
        each.zero_()
    for head in range(2):
        first = head * len(bias) // 2
        bias[first], key[first] = 1.0, 100 * vector


def one_layer(task: TaskConfig, folder: Path, name: str) -> tuple[hub.LoadedModel, nn.Module]:
    """Return a model with one fusion layer, wide enough that every token has its own direction, and its attention."""
    if name == "vlmo":
        cfg = replace(VLMO, width=64, depth=1, vl_expert_start=0, positions="absolute")
        loaded = saved(folder, task, cfg)
        return loaded, loaded.task.model.get_submodule("blocks.0.attention.shared")
    cfg = replace(BRIDGETOWER, layers=1, image=replace(BRIDGETOWER.image, depth=1))
    loaded = saved(folder, task, cfg)
    return loaded, loaded.task.model.get_submodule("layers.text.0.cross_attention")


def hottest(heat: Tensor) -> int:
    return int(heat.flatten().argmax())


@pytest.mark.parametrize("patch", [0, 6, 15])
@pytest.mark.parametrize("name", ["vlmo", "bridgetower"])
def test_rollout_highlights_the_attended_patch(tmp_path: Path, name: str, patch: int) -> None:
    loaded, module = one_layer(EntailmentConfig(), tmp_path, name)
    context, before = (0, WORDS) if name == "vlmo" else (1, 0)  # VLMo's patches follow the text
    attend_along(module, direction(captured(loaded, module, context), before + 1 + patch))
    [explanation] = explain(loaded, png_image(1), TEXT, method="rollout")
    assert explanation.words == (WHOLE, "the", "red", "cat")
    assert explanation.heat.shape == (4, SIDE, SIDE)
    for heat in explanation.heat:
        assert hottest(heat) == patch
        assert heat.flatten()[patch] > 0.24  # half of the attention, of which BridgeTower's tower mixes in half
        assert heat.sum() < 1


@pytest.mark.parametrize("name", ["vlmo", "bridgetower"])
def test_gradient_highlights_the_patch_that_supports_the_answer(tmp_path: Path, name: str) -> None:
    """All patches get equal attention and one alone has a value; with its sign flipped it opposes the answer."""
    patch = 9
    loaded, module = one_layer(EntailmentConfig(labels=("no", "yes")), tmp_path, name)
    context, before = (0, WORDS) if name == "vlmo" else (1, 0)
    states = captured(loaded, module, context)
    attend_along(module, torch.zeros(states.shape[-1]))
    shown = []
    for sign in (1.0, -1.0):
        set_values(module, 1e-3 * sign * direction(states, before + 1 + patch))
        [explanation] = explain(loaded, png_image(1), TEXT)
        shown.append(explanation.heat[0].flatten())
    supports, opposes = sorted(shown, key=lambda heat: -heat[patch].item())
    assert hottest(supports) == patch
    assert supports[patch] > 100 * supports[[n for n in range(16) if n != patch]].max()
    assert opposes[patch] < 0.1 * supports[patch]
    [plain] = explain(loaded, png_image(1), TEXT, method="rollout")
    assert plain.heat[0].flatten()[patch] < 1.5 * plain.heat[0].median()  # rollout ignores values


@torch.no_grad()
def set_values(module: nn.Module, vector: Tensor) -> None:
    """Make the values of all tokens zero except along ``vector``."""
    if hasattr(module, "qkv"):
        module.qkv.weight[2 * len(vector) :] = vector
        module.v_bias.zero_()
    else:
        module.value.weight[:] = vector
        module.value.bias.zero_()


def test_gradient_maps_equal_finite_differences(tmp_path: Path) -> None:
    """In one layer a map is attention times the slope of the answer's logit, measured by small steps."""
    loaded, module = one_layer(EntailmentConfig(), tmp_path, "vlmo")
    task = loaded.task
    assert isinstance(task, PairClassification)
    [explanation] = explain(loaded, png_image(1), TEXT)
    best = task.names.index(explanation.answer)
    image = loaded.processor.image(png_image(1), np.random.default_rng())[None].double()
    ids = torch.from_numpy(loaded.processor.text.encode(TEXT).ids)[None]
    task.double()
    size = 32

    def logit(head: int, patch: int, step: float) -> float:
        """Return the logit after adding step times the value of a patch to a head's output for the first token."""

        def more(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
            part = slice(head * size, (head + 1) * size)
            attended = given[0].clone()
            attended[0, 0, part] += step * values[0, WORDS + 1 + patch, part]
            return (attended,)

        handle = module.projection.register_forward_pre_hook(more)
        pooled = task.model.fuse(task.model.embed_image(image), task.model.embed_text(ids, ids > -1)).pooled
        handle.remove()
        return task.classifier(pooled)[0, best].item()

    with torch.no_grad(), record_attention(task.model) as recorded:
        inputs: list[Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        task.model.fuse(task.model.embed_image(image), task.model.embed_text(ids, ids > -1))
        handle.remove()
        values = inputs[0] @ module.qkv.weight[2 * 64 :].T + module.v_bias
        attention = recorded[module][0][0]
        for patch in range(16):
            expected = 0.0
            for head in range(2):
                slope = (logit(head, patch, 1e-4) - logit(head, patch, -1e-4)) / 2e-4
                expected += max(0.0, slope * attention[head, 0, WORDS + 1 + patch].item()) / 2
            assert explanation.heat[0].flatten()[patch].item() == pytest.approx(expected, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("model", [VLMO, BRIDGETOWER], ids=["vlmo", "bridgetower"])
@pytest.mark.parametrize("method", ["rollout", "gradient"])
def test_two_images_have_separate_maps(tmp_path: Path, model: ModelConfig, method: str) -> None:
    loaded = saved(tmp_path, NLVR2Config(), model)
    first, second = explain(loaded, (png_image(1), png_image(2)), TEXT, method=method)
    other_first, other_second = explain(loaded, (png_image(1), png_image(3)), TEXT, method=method)
    assert (first.pixels == other_first.pixels).all()
    assert not (second.pixels == other_second.pixels).all()
    assert not torch.equal(second.heat, other_second.heat)
    if method == "rollout":
        assert_close(first.heat, other_first.heat)


def test_an_itm_model_explains_the_match(tmp_path: Path) -> None:
    loaded = saved(tmp_path, PairsConfig(), BRIDGETOWER)
    [explanation] = explain(loaded, png_image(1), TEXT)
    assert explanation.answer.startswith("match ")
    assert explanation.heat.max() > 0


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        (PairsConfig(itm_weight=0), TEXT, "for questions, labels .* or pairs with ITM"),
        (MaskedTextConfig(), TEXT, "takes no image"),
        (PairsConfig(), "a [MASK]", r"has a \[MASK\]"),
        (EntailmentConfig(), "", "no text"),
    ],
)
def test_unsupported_tasks_and_texts_are_refused(tmp_path: Path, task: TaskConfig, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(saved(tmp_path, task, VLMO), png_image(1), text)


def test_a_bridge_without_a_flow_is_refused(tmp_path: Path) -> None:
    class Maximum(Bridge):
        def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
            return torch.maximum(u, z)

    loaded = saved(tmp_path, EntailmentConfig(), BRIDGETOWER)
    assert isinstance(loaded.task.model, BridgeTower)
    for module, message in ((Maximum(32), "Maximum does not define attention_flow"), (Sum(), "Sum is not a Bridge")):
        loaded.task.model.bridges["text"][0] = module
        with pytest.raises(DualfuseError, match=message):
            explain(loaded, png_image(1), TEXT)


class Sum(nn.Module):
    """A bridge that is not one of the library's."""

    def forward(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        return u + z


def test_a_model_or_tower_without_a_flow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    identity, flow = torch.eye(2), AttentionFlow(lambda _: torch.eye(1), rollout)
    model = built(BRIDGETOWER)
    assert isinstance(model, BridgeTower)
    monkeypatch.setattr(Roberta, "attention_flow", Tower.attention_flow)
    with pytest.raises(DualfuseError, match="Roberta does not define attention_flow"):
        model.attention_flow(flow, identity[:1], identity[1:])
    monkeypatch.setattr(BridgeTower, "attention_flow", VisionLanguageModel.attention_flow)
    with pytest.raises(DualfuseError, match="BridgeTower does not define attention_flow"):
        model.attention_flow(flow, identity[:1], identity[1:])


def test_the_hottest_patch_is_drawn_in_its_position() -> None:
    heat = torch.zeros(2, 2, 4)
    heat[0, 1, 3] = 1.0
    pixels = np.full((96, 192, 3), (0, 0, 255), dtype=np.uint8)
    grid = heat_map_grid([Explanation("yes", ("hot", "even"), heat, pixels)])
    hot = [np.asarray(grid.crop((8 + n * 200, 8, 200 + n * 200, 200)))[48:144] for n in range(3)]
    assert (hot[0][:, :, 2] == 255).all()  # the image itself
    assert hot[1][90, 186, 0] > 0.7 * HOT[0]
    assert abs(int(hot[1][10, 10, 0]) - 29) < 3  # grey of pure blue
    assert (hot[2][:, :, 0] < 33).all()  # nothing stands out


def test_the_command_draws_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = saved(tmp_path, EntailmentConfig(labels=("no", "yes")), VLMO)
    (tmp_path / "a.png").write_bytes(png_image(1))
    grid = tmp_path / "new" / "explain.png"
    model, images = str(tmp_path / "model"), (tmp_path / "a.png",)
    explain_command.run(model, image=images, text=TEXT, save_image=grid)
    [explanation] = explain(loaded, images, TEXT)
    assert capsys.readouterr().out == f"{explanation.answer}\nwrote {grid}\n"
    with Image.open(grid) as drawn:
        assert drawn.width > 5 * 192
    with pytest.raises(DualfuseError, match=r"must end in .png or .jpg"):
        explain_command.run(model, image=images, text=TEXT, save_image=tmp_path / "a.txt")
