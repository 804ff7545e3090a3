"""VLMo against a slow reference written from the paper: lists of numbers, one loop per token, head and channel."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.models.base import seq2seq_attention_mask
from dualfuse.models.vlmo import InitConfig, VLMo, VLMoConfig

Vector = list[float]
Matrix = list[Vector]
GRID = (2, 3)
TINY = VLMoConfig(
    width=8,
    depth=3,
    heads=2,
    vl_expert_start=2,
    patch_size=2,
    image_size=(4, 6),
    vocab_size=11,
    text_length=6,
    drop_path=0.0,
)
VARIANTS = {
    "multiway": TINY,
    "absolute-unscaled": replace(TINY, positions="absolute", init=InitConfig(layer_scale=0.0)),
    "no-vl-expert": replace(TINY, vl_expert_start=3),
    "standard-transformer": replace(TINY, experts="shared"),
    "separate-attention": replace(TINY, separate_attention_until=2),
    "separate-attention-shared-expert": replace(TINY, separate_attention_until=1, experts="shared"),
}


class Naive:
    """Fusion of one pair; every number is read from the state dict by name."""

    def __init__(self, cfg: VLMoConfig, model: VLMo) -> None:
        self.cfg = cfg
        self.weights = {name: tensor.tolist() for name, tensor in model.state_dict().items()}

    def fuse(self, ids: list[int], mask: list[bool], pixels: list) -> tuple[Vector, Matrix]:
        x = [self.embed(number, position) for position, number in enumerate(ids)] + self.image(pixels)
        mask = mask + [True] * (len(x) - len(ids))
        for layer in range(self.cfg.depth):
            x = self.block(layer, x, mask, length=len(ids))
        x = [self.norm(token, "norm", 1e-6) for token in x]
        pooled = [math.tanh(value) for value in self.linear(x[0], "pooler")]
        return pooled, x

    def embed(self, number: int, position: int) -> Vector:
        token = added(self.weights["words.word.weight"][number], self.weights["words.token_type.weight"][0])
        if self.cfg.positions == "absolute":
            token = added(token, self.weights["words.position.weight"][position])
        return added(self.norm(token, "words.norm", 1e-12), self.weights["types.weight"][0])

    def image(self, pixels: list) -> Matrix:
        patch, kernel = self.cfg.patch_size, self.weights["patches.projection.weight"]
        tokens = [self.weights["patches.class_token"][0][0]]
        for top in range(0, len(pixels[0]), patch):
            for left in range(0, len(pixels[0][0]), patch):
                offsets = [(c, y, x) for c in range(3) for y in range(patch) for x in range(patch)]
                token = []
                for channel, bias in enumerate(self.weights["patches.projection.bias"]):
                    weight = kernel[channel]
                    token.append(bias + sum(weight[c][y][x] * pixels[c][top + y][left + x] for c, y, x in offsets))
                tokens.append(token)
        if self.cfg.positions == "absolute":
            tokens = [added(*pair) for pair in zip(tokens, self.weights["patches.position"][0], strict=True)]
        return [added(token, self.weights["types.weight"][1]) for token in tokens]

    def block(self, layer: int, x: Matrix, mask: list[bool], length: int) -> Matrix:
        own = layer < self.cfg.separate_attention_until
        after = []
        for token in range(len(x)):
            is_text = token < length
            keys = [key for key in range(len(x)) if mask[key] and (not own or (key < length) == is_text)]
            keys = [key for key in keys if self.may_attend(token, key, length)]
            attention = ("text" if is_text else "image") if own else "shared"
            update = self.attention(layer, f"blocks.{layer}.attention.{attention}", x, token, keys, length)
            after.append(added(x[token], self.scaled(update, f"blocks.{layer}.scale_1")))
        return [
            added(token, self.scaled(self.expert(layer, token, number < length), f"blocks.{layer}.scale_2"))
            for number, token in enumerate(after)
        ]

    def may_attend(self, query: int, key: int, length: int) -> bool:
        return True

    def attention(self, layer: int, name: str, x: Matrix, query: int, keys: list[int], length: int) -> Vector:
        width, heads = self.cfg.width, self.cfg.heads
        size = width // heads
        projection = self.weights[f"{name}.qkv.weight"]
        biases = self.weights[f"{name}.q_bias"] + [0.0] * width + self.weights[f"{name}.v_bias"]

        def projected(token: int, part: int, head: int) -> Vector:
            start = part * width + head * size
            normed = self.norm(x[token], f"blocks.{layer}.norm", 1e-6)
            return [dot(projection[row], normed) + biases[row] for row in range(start, start + size)]

        mixed: Vector = []
        for head in range(heads):
            query_vector = projected(query, 0, head)
            scores = [dot(query_vector, projected(key, 1, head)) / math.sqrt(size) for key in keys]
            scores = [
                score + self.bias(layer, head, query, key, length) for score, key in zip(scores, keys, strict=True)
            ]
            largest = max(scores)
            weights = [math.exp(score - largest) for score in scores]
            values = [projected(key, 2, head) for key in keys]
            for channel in range(size):
                total = sum(weight * value[channel] for weight, value in zip(weights, values, strict=True))
                mixed.append(total / sum(weights))
        return self.linear(mixed, f"{name}.projection")

    def bias(self, layer: int, head: int, query: int, key: int, length: int) -> float:
        if self.cfg.positions == "absolute":
            return 0.0
        height, width = GRID
        n = (2 * height - 1) * (2 * width - 1) + 3
        rows, longest = n + 2 * self.cfg.text_length + 2, self.cfg.text_length
        if query < length and key < length:
            row = rows - 1 if query == key == 0 else rows - 3 if query == 0 else rows - 2 if key == 0 else None
            row = (key - query) + (longest - 2) + n + 2 if row is None else row
        elif query < length or key < length:
            row = n if query < length else n + 1
        else:
            q, k = query - length, key - length
            row = n - 1 if q == k == 0 else n - 3 if q == 0 else n - 2 if k == 0 else None
            if row is None:
                down, right = (q - 1) // width - (k - 1) // width, (q - 1) % width - (k - 1) % width
                row = (down + height - 1) * (2 * width - 1) + (right + width - 1)
        return self.weights["relative_bias.table"][row][layer * self.cfg.heads + head]

    def expert(self, layer: int, token: Vector, is_text: bool) -> Vector:
        expert = "vl" if layer >= self.cfg.vl_expert_start else "text" if is_text else "image"
        name = f"blocks.{layer}.experts.{'shared' if self.cfg.experts == 'shared' else expert}"
        wide = self.linear(self.norm(token, f"{name}.norm", 1e-6), f"{name}.up")
        return self.linear([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in wide], f"{name}.down")

    def scaled(self, x: Vector, name: str) -> Vector:
        if f"{name}.weight" not in self.weights:
            return x
        return [value * factor for value, factor in zip(x, self.weights[f"{name}.weight"], strict=True)]

    def linear(self, x: Vector, name: str) -> Vector:
        pairs = zip(self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], strict=True)
        return [dot(row, x) + bias for row, bias in pairs]

    def norm(self, x: Vector, name: str, epsilon: float) -> Vector:
        mean = sum(x) / len(x)
        spread = math.sqrt(sum((value - mean) ** 2 for value in x) / len(x) + epsilon)
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return [(v - mean) / spread * w + b for v, w, b in zip(x, weight, bias, strict=True)]


class Seq2Seq(Naive):
    """An image attends to itself; a token to the image, the tokens before it, and itself."""

    def may_attend(self, query: int, key: int, length: int) -> bool:
        return key >= length or (query < length and key <= query)


def dot(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def added(one: Vector, other: Vector) -> Vector:
    return [a + b for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_fusion_equals_the_reference(variant: str) -> None:
    torch.manual_seed(3)
    cfg = VARIANTS[variant]
    model = cfg.build().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    ids, mask = [3, 7, 1, 5], [True, True, True, False]
    pixels = torch.randn(3, 4, 6, dtype=torch.float64)
    fused = model.fuse(model.embed_image(pixels[None]), model.embed_text(torch.tensor([ids]), torch.tensor([mask])))
    pooled, states = Naive(cfg, model).fuse(ids, mask, pixels.tolist())
    expected = torch.tensor(states, dtype=torch.float64)
    assert_close(fused.pooled[0], torch.tensor(pooled, dtype=torch.float64), atol=1e-10, rtol=1e-10)
    assert_close(fused.text[0], expected[:4], atol=1e-10, rtol=1e-10)
    assert_close(fused.image[0], expected[4:], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_equals_the_reference(variant: str) -> None:
    """All tokens at once under the mask, some positions, and token by token with a cache."""
    torch.manual_seed(3)
    cfg = VARIANTS[variant]
    model = cfg.build().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    ids, pixels = [3, 7, 1, 5], torch.randn(3, 4, 6, dtype=torch.float64)
    _, states = Seq2Seq(cfg, model).fuse(ids, [True] * 4, pixels.tolist())
    expected = torch.tensor(states, dtype=torch.float64)
    image, text = model.embed_image(pixels[None]), model.embed_text(torch.tensor([ids]), torch.ones(1, 4))
    fused = model.fuse(image, text, attention_mask=seq2seq_attention_mask(4, 7))
    assert_close(fused.text[0], expected[:4], atol=1e-10, rtol=1e-10)
    assert_close(fused.image[0], expected[4:], atol=1e-10, rtol=1e-10)
    some = model.fuse(image, text, positions=torch.tensor([[3, 1]]), attention_mask=seq2seq_attention_mask(4, 7))
    assert_close(some.text[0], expected[[3, 1]], atol=1e-10, rtol=1e-10)
    cache = model.prefill(image, max_length=6)
    for length in range(1, 5):
        text = model.embed_text(torch.tensor([ids[:length]]), torch.ones(1, length))
        state, cache = model.decode_step(cache, text)
        assert len(cache) == length - 1
        assert_close(state[0], expected[length - 1], atol=1e-10, rtol=1e-10)


def test_drop_path_rises_with_depth_and_is_the_dropout_of_text() -> None:
    model = replace(TINY, depth=5, drop_path=0.2).build()
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert model.words.dropout.p == 0.2
    assert replace(TINY, depth=1, drop_path=0.2).build().blocks[0].drop_path.rate == 0


def deviation(parameter: Tensor) -> float:
    return parameter.detach().std().item()


def test_initial_weights() -> None:
    torch.manual_seed(4)
    cfg = replace(TINY, width=128, patch_size=8, image_size=(32, 32), vocab_size=300, image_slots=40)
    model = replace(cfg, positions="absolute", text_length=40).build()
    for name, parameter in model.named_parameters():
        if ".norm" in name or name.startswith("norm"):
            assert (parameter == float(name.endswith("weight"))).all(), name
        elif "scale_" in name:
            assert (parameter == 0.1).all(), name
        elif "patches.projection" not in name and not name.endswith("bias") and "token_type" not in name:
            assert deviation(parameter) == pytest.approx(0.02, rel=0.15), name
            assert abs(parameter.mean().item()) < 0.004, name
        elif name.endswith("bias") and "patches" not in name:
            assert not parameter.any(), name
    assert deviation(model.words.token_type.weight) == pytest.approx(0.02, rel=0.3)
    assert model.words.word.weight[0].any()  # the row of the padding token too
    fan_in = 3 * 8 * 8
    assert deviation(model.patches.projection.weight) == pytest.approx(
        1 / math.sqrt(3 * fan_in), rel=0.05
    )  # PyTorch's default
    relative = cfg.build().relative_bias
    assert relative is not None and not relative.table.any()


def test_initial_weights_of_a_narrow_model() -> None:
    torch.manual_seed(5)
    model = replace(TINY, width=64, init=InitConfig(std=0.125, layer_scale=0.5), vocab_size=300).build()
    for block in model.blocks:
        assert deviation(block.attention["shared"].qkv.weight) == pytest.approx(0.125, rel=0.05)
        assert deviation(block.experts["text"].down.weight) == pytest.approx(0.125, rel=0.05)
        assert (block.scale_1.weight == 0.5).all() and (block.scale_2.weight == 0.5).all()
    assert deviation(model.words.word.weight) == pytest.approx(0.02, rel=0.05)
    unscaled = replace(TINY, init=InitConfig(layer_scale=0.0)).build()
    assert not [name for name, _ in unscaled.named_parameters() if "scale_" in name]
