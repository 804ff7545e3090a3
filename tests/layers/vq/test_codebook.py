"""The codebook, and the autoencoder that contains it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from dualfuse.layers.vq.autoencoder import AutoencoderConfig
from dualfuse.layers.vq.codebook import Codebook, count, perplexity

TINY = AutoencoderConfig(codes=16, stride=4, width=8, blocks=1, code_width=4)


def clusters(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit vectors around six directions, two of them rare, and the index of their direction."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.cat([torch.eye(3), -torch.eye(3)])
    which = torch.multinomial(torch.tensor([8.0, 8, 8, 8, 1, 1]), rows, replacement=True, generator=generator)
    return F.normalize(centres[which] + 0.1 * torch.randn(rows, 3, generator=generator), dim=1), which


def test_codes_converge_to_clusters_and_dead_codes_are_revived() -> None:
    torch.manual_seed(0)
    book = Codebook(12, 3)
    for step in range(100):
        book(clusters(300, seed=step)[0])
    x, which = clusters(2000, seed=999)
    codes = book.eval()(x)
    assert (book.embeddings.norm(dim=1) - 1).abs().max() < 1e-5
    used = codes.unique().tolist()
    assert len(used) >= 11
    assert all(which[codes == code].unique().numel() == 1 for code in used)
    before = book.embeddings.clone()
    book(x)
    assert torch.equal(book.embeddings, before)


def test_without_revival_codes_stay_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codebook, "_revive", lambda *_: None)
    torch.manual_seed(0)
    book = Codebook(64, 3)
    alike = F.normalize(torch.tensor([1.0, 1, 1]) + 0.1 * torch.randn(300, 3), dim=1)
    for _ in range(30):
        book(alike)
    assert book.eval()(alike).unique().numel() < 20
    monkeypatch.undo()
    for _ in range(30):
        book.train()(alike)
    assert book.eval()(alike).unique().numel() > 50


def test_codes_are_the_nearest() -> None:
    book = Codebook(7, 5).eval()
    x = F.normalize(torch.randn(20, 5), dim=1)
    assert torch.equal(book(x), torch.cdist(x, book.embeddings).argmin(1))


def test_a_dead_code_is_replaced_by_an_input() -> None:
    book = Codebook(4, 3)
    x, _ = clusters(50)
    book(x)
    book.share[2], book.embeddings[2] = 0.0, torch.tensor([0.6, 0.0, 0.8])
    others = book.embeddings[[0, 1, 3]].clone()
    book._revive(x)
    assert (x == book.embeddings[2]).all(1).any() and book.share[2] == 0.25
    assert torch.equal(book.embeddings[[0, 1, 3]], others)


def test_perplexity_of_a_uniform_distribution_is_its_size() -> None:
    assert perplexity(torch.tensor([5.0, 5, 0, 5, 5])).item() == pytest.approx(4)
    assert perplexity(torch.tensor([7.0, 0, 0])).item() == pytest.approx(1)
    assert count(torch.tensor([[0, 2], [2, 3]]), 5).tolist() == [1, 0, 2, 1, 0]


def test_gradients_pass_codes_straight_through() -> None:
    torch.manual_seed(0)
    model = TINY.build().eval()
    images = torch.rand(2, 3, 8, 12)
    drawn = model.reconstruct(images)
    assert drawn.images.shape == images.shape and drawn.codes.shape == (2, 6)
    assert torch.equal(drawn.codes, model(images)) and not torch.equal(drawn.images, images)
    drawn.images.square().sum().backward()
    # the same in two halves: what the decoder asks of the chosen vectors, given to the encoder as it is
    embeddings = F.normalize(model.encoder(2 * images - 1), dim=1)
    chosen = model.codebook.embeddings[drawn.codes].view(2, 2, 3, 4).permute(0, 3, 1, 2).requires_grad_()
    asked = torch.autograd.grad(((model.decoder(chosen) + 1) / 2).square().sum(), chosen)[0]
    parameters = list(model.encoder.parameters())
    for parameter, wanted in zip(parameters, torch.autograd.grad(embeddings, parameters, asked), strict=True):
        assert parameter.grad is not None and parameter.grad.any()
        assert_close(parameter.grad, wanted)


def test_reconstruction_depends_on_codes_only() -> None:
    model = TINY.build().eval()
    images = torch.rand(1, 3, 8, 8)
    drawn = model.reconstruct(images)
    model.codebook.embeddings[drawn.codes[0, 0]] *= -1
    other = model.decoder(model.codebook.embeddings[drawn.codes].view(1, 2, 2, 4).permute(0, 3, 1, 2))
    assert ((other + 1) / 2 - drawn.images).abs().max() > 1e-4


def test_invalid_sizes_are_refused() -> None:
    for changes in ({"stride": 6}, {"stride": 1}, {"width": 12}, {"codes": 0}):
        with pytest.raises(ValueError):
            AutoencoderConfig(**changes)
    with pytest.raises(ValueError, match="9 x 8 pixels"):
        TINY.build()(torch.zeros(1, 3, 9, 8))
