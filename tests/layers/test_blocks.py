"""Routes, stochastic depth and LayerScale of the Multiway block, and its attention against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.layers.attention import SelfAttention, gather_positions
from dualfuse.layers.blocks import Block, DropPath, Expert, LayerScale

MANY = 8000
PARTS = ("text", "image", "vl")


def block(
    *,
    experts: tuple[str, ...] = PARTS,
    attentions: tuple[str, ...] = ("shared",),
    scale: float = 0.0,
    drop: float = 0.0,
) -> Block:
    torch.manual_seed(0)
    made = Block(4, heads=2, attentions=attentions, experts=experts, layer_scale=scale, drop_path=drop)
    for name, parameter in made.named_parameters():
        if "scale_" not in name:
            nn.init.normal_(parameter, std=0.5)
    return made.double().eval()


def tokens(number: int = 3, length: int = 6) -> Tensor:
    return torch.randn(number, length, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def constant_branches(made: Block, *, attention: float, experts: dict[str, float]) -> Block:
    """Return the block with every residual branch replaced by a constant."""
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    for part in made.attention.values():
        nn.init.constant_(part.projection.bias, attention)
    for name, value in experts.items():
        nn.init.constant_(made.experts[name].down.bias, value)
    return made


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.75])
def test_drop_path_drops_whole_samples_and_preserves_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    drop = DropPath(rate).train()
    x = tokens(1).expand(MANY, -1, -1)
    dropped = drop(x)
    is_gone = (dropped == 0).all(2).all(1)
    assert is_gone.double().mean().item() == pytest.approx(rate, abs=0.02)  # more than three standard deviations
    assert_close(dropped[~is_gone], x[~is_gone] / (1 - rate))
    assert drop.eval()(x) is x


def test_drop_path_zero_is_the_identity() -> None:
    x = tokens()
    assert DropPath(0.0).train()(x) is x


def test_text_and_image_branches_are_dropped_independently() -> None:
    """With a drop rate of 0.3, a fraction 0.7 * 0.3 of the samples loses only the text branch, and so on."""
    torch.manual_seed(0)
    made = constant_branches(block(drop=0.3), attention=0.0, experts={"text": 0.7, "image": 0.7}).train()
    out = made(torch.zeros(MANY, 6, 4, dtype=torch.float64), (("text", 2), ("image", 4)))
    kept = out > 0.5
    assert_close(out, kept.double())  # 0.7 / (1 - 0.3)
    text, image = kept[:, 0, 0], kept[:, 2, 0]
    assert torch.equal(kept[:, :2], text[:, None, None].expand(-1, 2, 4))
    assert torch.equal(kept[:, 2:], image[:, None, None].expand(-1, 4, 4))
    shares = [(text == one).logical_and(image == other).double().mean().item() for one in (0, 1) for other in (0, 1)]
    assert shares == pytest.approx([0.09, 0.21, 0.21, 0.49], abs=0.02)


def test_attention_and_experts_are_dropped_independently() -> None:
    torch.manual_seed(0)
    made = constant_branches(block(drop=0.3), attention=0.7, experts={"text": 1.4, "image": 1.4}).train()
    out = made(torch.zeros(MANY, 2, 4, dtype=torch.float64), (("text", 1), ("image", 1)))[..., 0].round()
    attended = out % 2
    assert torch.equal(attended[:, 0], attended[:, 1])
    shares = [
        ((attended[:, 0] == one) & (out[:, 0] // 2 == two)).double().mean().item() for one in (0, 1) for two in (0, 1)
    ]
    assert shares == pytest.approx([0.09, 0.21, 0.21, 0.49], abs=0.02)


def test_each_part_passes_the_expert_of_its_route() -> None:
    made = constant_branches(block(), attention=0.0, experts={"text": 1.0, "image": 2.0, "vl": 3.0})
    nothing = torch.zeros(2, 6, 4, dtype=torch.float64)
    out = made(nothing, (("image", 1), ("text", 2), ("vl", 3)))
    assert out[1, :, 2].tolist() == [2, 1, 1, 3, 3, 3]
    assert made(nothing, (("vl", 6),)).unique().tolist() == [3]


def test_a_shared_expert_is_used_for_every_name() -> None:
    made = block(experts=("shared",))
    assert_close(made(tokens(), (("text", 2), ("image", 4))), made(tokens(), (("vl", 6),)))


def test_attention_is_selected_by_the_first_name() -> None:
    made = constant_branches(block(attentions=("text", "image")), attention=0.0, experts={})
    nn.init.constant_(made.attention["image"].projection.bias, 5.0)
    nothing = torch.zeros(1, 2, 4, dtype=torch.float64)
    assert made(nothing, (("text", 2),)).unique().tolist() == [0]
    assert made(nothing, (("image", 2),)).unique().tolist() == [5]


@pytest.mark.parametrize("route", [(("text", 2), ("image", 3)), (("text", 7),)])
def test_a_route_must_cover_all_tokens(route: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(RuntimeError, match="split"):
        block()(tokens(), route)


def test_block_matches_the_formula() -> None:
    made, x = block(scale=0.25), tokens()
    middle = x + 0.25 * made.attention["shared"](made.norm(x))
    wanted = torch.cat(
        [part + 0.25 * made.experts[name](part) for name, part in (("text", middle[:, :2]), ("image", middle[:, 2:]))],
        1,
    )
    assert_close(made(x, (("text", 2), ("image", 4))), wanted)


def test_expert_matches_the_formula() -> None:
    expert = block().experts["text"]
    assert isinstance(expert, Expert)
    x = tokens()
    normed = (x - x.mean(2, keepdim=True)) / (x.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
    wide = (normed * expert.norm.weight + expert.norm.bias) @ expert.up.weight.T + expert.up.bias
    bent = wide * (1 + torch.erf(wide / 2**0.5)) / 2
    assert wide.shape[2] == 16
    assert_close(expert(x), bent @ expert.down.weight.T + expert.down.bias)


def test_layer_scale_is_per_channel() -> None:
    scale = LayerScale(4, initial=0.1)
    assert scale.weight.tolist() == pytest.approx([0.1] * 4)
    nn.init.constant_(scale.weight[1:2].detach(), 2.0)
    assert_close(scale(torch.ones(2, 3, 4)), torch.tensor([0.1, 2.0, 0.1, 0.1]).expand(2, 3, 4))
    assert isinstance(block(scale=0.0).scale_1, nn.Identity)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_mask", [False, True])
def test_attention_matches_torch(has_mask: bool, has_bias: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = SelfAttention(8, heads=2).double(), nn.MultiheadAttention(8, 2, batch_first=True).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    state = {
        "in_proj_weight": ours.qkv.weight,
        "in_proj_bias": torch.cat([ours.q_bias, torch.zeros(8), ours.v_bias]),
        "out_proj.weight": ours.projection.weight,
        "out_proj.bias": ours.projection.bias,
    }
    theirs.load_state_dict(state)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 2, 1])[:, None] if has_mask else None
    bias = torch.randn(2, 5, 5, dtype=torch.float64) if has_bias else None
    unseen = torch.zeros(3, 5, dtype=torch.float64) if mask is None else torch.where(mask, 0.0, float("-inf")).double()
    added = torch.zeros(2, 5, 5, dtype=torch.float64) if bias is None else bias
    wanted, _ = theirs(x, x, x, key_padding_mask=unseen, attn_mask=added.repeat(3, 1, 1))
    assert_close(ours(x, mask, bias), wanted)
    rows = torch.tensor([[4, 0], [1, 1], [3, 2]])
    assert_close(ours(x, mask, bias, rows), gather_positions(wanted, rows))


def test_selected_positions_match_the_full_output() -> None:
    made, x, rows = block(scale=0.3), tokens(), torch.tensor([[4, 0], [1, 1], [5, 2]])
    rest = {"mask": torch.arange(6) < torch.tensor([6, 2, 1])[:, None], "bias": tokens(2 * 3).view(2, 6, 12)[..., :6]}
    whole = made(x, (("vl", 6),), **rest)
    assert_close(made(x, (("vl", 2),), **rest, positions=rows), gather_positions(whole, rows))
    none = made(x, (("vl", 0),), **rest, positions=rows[:, :0])
    assert none.shape == (3, 0, 4)


def test_gather_positions() -> None:
    x = tokens(2, 3)
    taken = gather_positions(x, torch.tensor([[2, 2], [0, 1]]))
    assert torch.equal(taken, torch.stack([x[0, [2, 2]], x[1, [0, 1]]]))
