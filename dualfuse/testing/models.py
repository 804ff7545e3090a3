"""The contract test of a vision-language model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dualfuse.config import from_json, to_json, trust
from dualfuse.errors import DualfuseError
from dualfuse.inference.attention_maps import record_attention
from dualfuse.layers.attention_flow import AttentionFlow, rollout
from dualfuse.layers.embeddings import MaskedPatches
from dualfuse.models.base import ModelConfig, Tokens, VisionLanguageModel, seq2seq_attention_mask
from dualfuse.testing.dual_encoders import check_dual_encoder

BATCH = 4


def check_model(
    model: ModelConfig | VisionLanguageModel, *, image_size: tuple[int, int] = (32, 32), text_length: int = 8
) -> None:
    """Check that a model keeps the contract of :class:`~dualfuse.models.base.VisionLanguageModel`.

    ``model`` is a model, or better its config, with which construction, weights and JSON are checked too. A small one
    is enough: the check takes seconds and runs in float64 on a copy with random weights. ``image_size`` (height,
    width) and ``text_length`` (at least 3 tokens) must be sizes that the model takes. Raises AssertionError that names
    the broken part of the contract. As for any config of your own, :func:`dualfuse.config.trust` is called on it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        copies = [copy.deepcopy(model)] if isinstance(model, VisionLanguageModel) else _built(model)
        model = _randomized(copies[0])
        if not model.capabilities.fusion:
            check_dual_encoder(model, copies[1:], image_size, text_length, _require)
            return
        contract = _Contract(model, image_size, text_length)
        with torch.no_grad():
            for other in copies[1:]:
                contract.check_copy(other)
            contract.check_verbs()
            contract.check_dependence()
            contract.check_padding()
            contract.check_tokens()
            contract.check_positions()
            contract.check_capabilities()
        contract.check_modules()
        contract.check_gradients()
        contract.check_attention_flow()


def _built(config: ModelConfig) -> list[VisionLanguageModel]:
    """Return two models of a config that survives JSON and whose models depend on nothing but the seed."""
    trust(config)
    _require(from_json(to_json(config)) == config, "a config equals its copy through JSON")
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        states.append(config.build().state_dict())
    one, other = states
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    _require(same, "building twice with one seed gives the same weights")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in config.build().state_dict().items()}
    _require(shapes == {name: tensor.shape for name, tensor in one.items()}, "the model builds on the meta device")
    models = [model for model in (config.build(), config.build()) if isinstance(model, VisionLanguageModel)]
    _require(len(models) == 2, "build() returns a VisionLanguageModel")
    return models


def _randomized(model: VisionLanguageModel) -> VisionLanguageModel:
    """Return the model in float64 with every parameter random: initial zeros would hide mistakes."""
    model = model.double().eval().requires_grad_(True)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4 if parameter.ndim < 2 else 1.6 / parameter[0].numel() ** 0.5)
    return model


class _Contract:
    """A batch of four pairs with texts of different lengths, and what the model must do with it."""

    def __init__(self, model: VisionLanguageModel, image_size: tuple[int, int], text_length: int) -> None:
        self.model, self.image_size, self.text_length = model, image_size, text_length
        self.lengths = [text_length // 2, text_length, 1, text_length - 1]
        self.images = torch.randn(BATCH, 3, *image_size, dtype=torch.float64)
        self.ids = torch.randint(model.vocab_size, (BATCH, text_length))
        self.mask = torch.arange(text_length) < torch.tensor(self.lengths)[:, None]
        with torch.no_grad():
            self.image, self.text = model.embed_image(self.images), model.embed_text(self.ids, self.mask)

    def check_copy(self, other: VisionLanguageModel) -> None:
        """Check that another model with the same state dict is the same function."""
        other = other.double().eval()
        other.load_state_dict(self.model.state_dict())
        image, text = other.embed_image(self.images), other.embed_text(self.ids, self.mask)
        rule = "a model with the weights of another gives what that gives"
        _require_close(other.fuse(image, text).pooled, self.model.fuse(self.image, self.text).pooled, rule)
        for one, own in ((image, self.image), (text, self.text)):
            _require_close(other.encode(one), self.model.encode(own), rule)

    def check_verbs(self) -> None:
        """Check the shapes that the four verbs return."""
        model, image, text = self.model, self.image, self.text
        _require((image.modality, text.modality) == ("image", "text"), "tokens name their modality")
        _require(len(image.grid) == 2 and text.grid == (), "tokens of images have a grid, tokens of texts none")
        patches = 1 + image.grid[0] * image.grid[1]
        _require(image.mask.shape == (BATCH, patches) and bool(image.mask.all()), "images are a class token and a grid")
        _require(torch.equal(text.mask, self.mask), "the mask of texts is that of embed_text")
        for tokens, width in zip((image, text), model.encode_widths, strict=True):
            _require(all(len(state) == BATCH for state in tokens.states), "states have one entry per example")
            features = model.itc_features(tokens)
            _require(model.encode(tokens).shape == (BATCH, width), "encode returns (B, W) of encode_widths")
            _require(len(features) == model.num_itc_features, "itc_features returns num_itc_features embeddings")
            _require(all(each.shape == (BATCH, width) for each in features), "itc_features are (B, W) of encode_widths")
            _require_close(features[0], model.encode(tokens), "the first of itc_features is encode")
        fused = model.fuse(image, text)
        _require(fused.pooled.shape == (BATCH, model.fused_width), "fuse(...).pooled is (B, fused_width)")
        text_shape = (BATCH, self.text_length, model.text_width)
        _require(fused.text.shape == text_shape, "fuse(...).text is (B, T, text_width)")
        _require(fused.image.shape[:2] == (BATCH, patches), "fuse(...).image is (B, 1 + P, D)")

    def check_dependence(self) -> None:
        """Check that every output depends on its inputs, without which equalities would mean nothing."""
        model, ids = self.model, self.ids.clone()
        ids[:, 0] = (ids[:, 0] + 1) % model.vocab_size
        text, image = model.embed_text(ids, self.mask), model.embed_image(self.images.flip(3))
        fused = model.fuse(self.image, self.text)
        for other, what in ((model.fuse(self.image, text), "text"), (model.fuse(image, self.text), "image")):
            for name in ("pooled", "text", "image"):
                changes = (getattr(other, name) - getattr(fused, name)).flatten(1).abs().amax(1)
                _require(bool((changes > 1e-9).all()), f"fuse(...).{name} depends on the {what}")
        for one, other, what in ((self.text, text, "text"), (self.image, image, "image")):
            changes = (model.encode(one) - model.encode(other)).abs().amax(1)
            _require(bool((changes > 1e-9).all()), f"encode depends on the {what}")

    def check_padding(self) -> None:
        """Check that neither padding nor the rest of the batch changes an example."""
        model, fused = self.model, self.model.fuse(self.image, self.text)
        for row, length in enumerate(self.lengths):
            image = model.embed_image(self.images[row : row + 1])
            text = model.embed_text(self.ids[row : row + 1, :length], self.mask[row : row + 1, :length])
            alone = model.fuse(image, text)
            rule = "an example alone, without padding, gives what it gives in a batch: "
            _require_close(fused.pooled[row], alone.pooled[0], rule + "fuse(...).pooled")
            _require_close(fused.text[row, :length], alone.text[0], rule + "fuse(...).text")
            _require_close(fused.image[row], alone.image[0], rule + "fuse(...).image")
            for batch, one in ((self.image, image), (self.text, text)):
                for feature, single in zip(model.itc_features(batch), model.itc_features(one), strict=True):
                    _require_close(feature[row], single[0], rule + f"itc_features of the {batch.modality}")
        ids = torch.where(self.mask, self.ids, (self.ids + 1) % model.vocab_size)
        other = model.fuse(self.image, model.embed_text(ids, self.mask))
        rule = "the ids of padding change nothing: "
        _require_close(fused.pooled, other.pooled, rule + "fuse(...).pooled")
        _require_close(fused.text[self.mask], other.text[self.mask], rule + "fuse(...).text")

    def check_tokens(self) -> None:
        """Check that taking examples from tokens, and joining tokens, is the same as doing so with the inputs."""
        model, index = self.model, torch.tensor([2, 0, 2, 3, 1])
        taken = self.image.take(index), self.text.take(index)
        embedded = model.embed_image(self.images[index]), model.embed_text(self.ids[index], self.mask[index])
        for one, other in zip(taken, embedded, strict=True):
            _require((one.grid, one.mask.tolist()) == (other.grid, other.mask.tolist()), "take keeps grid and mask")
            for state, expected in zip(one.states, other.states, strict=True):
                _require_close(state, expected, "taking examples from tokens is taking them from the inputs")
        fused = model.fuse(self.image, self.text)
        _require_close(model.fuse(*taken).pooled, fused.pooled[index], "fuse treats the examples of a batch alike")
        for tokens in (self.image, self.text):
            joined = Tokens.join([tokens.take(torch.tensor(part)) for part in ([0, 1, 2], [3])])
            for state, expected in zip(joined.states, tokens.states, strict=True):
                _require_close(state, expected, "joining tokens is concatenating the inputs")

    def check_positions(self) -> None:
        """Check that the states at some positions are those of the whole."""
        fused = self.model.fuse(self.image, self.text)
        for number in (0, 1, 3):
            positions = torch.stack([torch.randint(length, (number,)) for length in self.lengths])
            some = self.model.fuse(self.image, self.text, positions=positions)
            rule = "fuse with positions gives what fuse without them gives there: "
            expected = fused.text.gather(1, positions[..., None].expand(-1, -1, fused.text.shape[2]))
            _require_close(some.text, expected, rule + "text")
            _require_close(some.pooled, fused.pooled, rule + "pooled")
            _require(some.image.shape[:2] == (BATCH, 0), "fuse with positions returns no states of images")

    def check_capabilities(self) -> None:
        """Check what ``capabilities`` promises; what it denies raises DualfuseError."""
        can = self.model.capabilities
        for promised, check in (
            (can.generation, self._check_generation),
            (can.unimodal_states, self._check_unimodal_states),
        ):
            try:
                check()
            except DualfuseError as error:
                _require(not promised, f"{check.__name__.removeprefix('_check_')} is a capability, but raises: {error}")
            else:
                _require(promised, f"{check.__name__.removeprefix('_check_')} works, but is not among the capabilities")
        if can.patch_dropout:
            order = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(self.image.mask.shape[1] - 1)])
            shuffled = self.image.select(order.expand(BATCH, -1))
            rule = "with patch_dropout, encode reads patches in any order"
            _require_close(self.model.encode(shuffled), self.model.encode(self.image), rule)

    def _check_generation(self) -> None:
        model, rule = self.model, "decoding token by token gives what fuse gives with seq2seq_attention_mask"
        attention_mask = seq2seq_attention_mask(self.text_length, self.image.mask.shape[1])
        text = model.embed_text(self.ids, torch.ones_like(self.mask))
        expected = model.fuse(self.image, text, attention_mask=attention_mask).text
        cache = model.prefill(self.image, self.text_length)
        for length in range(1, self.text_length + 1):
            text = model.embed_text(self.ids[:, :length], torch.ones_like(self.mask[:, :length]))
            state, cache = model.decode_step(cache, text)
            _require_close(state, expected[:, length - 1], rule)

    def _check_unimodal_states(self) -> None:
        model = self.model
        for tokens in (self.image, self.text):
            first = model.token_states(tokens, tokens.first)[:, 0]
            _require_close(first, model.encode(tokens), "encode is the first token's state")
        hidden = torch.rand(BATCH, self.image.mask.shape[1] - 1) < 0.5
        token = torch.zeros(1, 1, self.image.states[0].shape[-1], dtype=torch.float64)
        bare = model.embed_masked_image(self.images, MaskedPatches(torch.zeros_like(hidden), token))
        _require_close(bare.states[0], self.image.states[0], "without hidden patches embed_masked_image is embed_image")
        pixels = hidden.unflatten(1, self.image.grid).double()[:, None]
        changed = self.images + nn.functional.interpolate(pixels, size=self.image_size)
        patches = MaskedPatches(hidden, token)
        masked, other = (model.embed_masked_image(images, patches).states[0] for images in (self.images, changed))
        _require_close(masked, other, "embed_masked_image does not read the pixels of hidden patches")

    def check_modules(self) -> None:
        """Check what sharding, layer-wise learning rates and frozen parts read of the model."""
        model, parameters = self.model, set(self.model.parameters())
        blocks = [set(block.parameters()) for block in model.fsdp_blocks()]
        inside = set[nn.Parameter]().union(*blocks)
        _require(bool(blocks) and sum(map(len, blocks)) == len(inside), "fsdp_blocks share no weights")
        _require(inside < parameters, "fsdp_blocks are parts of the model")
        levels = {part for level in model.lr_layers() for module in level for part in module.parameters()}
        _require(inside <= levels <= parameters, "lr_layers covers every block of fsdp_blocks")
        fusion = {part for module in model.fusion_modules() for part in module.parameters()}
        _require(fusion < parameters, "fusion_modules are parts of the model")

    def check_gradients(self) -> None:
        """Check that every parameter is used by some verb."""
        model = self.model
        image, text = model.embed_image(self.images), model.embed_text(self.ids, self.mask)
        fused = model.fuse(image, text)
        outputs = (fused.pooled, fused.text, fused.image, *model.itc_features(image), *model.itc_features(text))
        torch.stack([(output * torch.randn_like(output)).sum() for output in outputs]).sum().backward()
        for name, parameter in model.named_parameters():
            used = parameter.grad is not None and bool(parameter.grad.any())
            _require(used, f"every parameter has a gradient, but {name} has none")
        model.zero_grad()

    def check_attention_flow(self) -> None:
        """Check that rollout keeps the sum of relevance, for a model that defines its attention flow."""
        with torch.no_grad(), record_attention(self.model) as recorded:
            image = self.model.embed_image(self.images[1:2])
            text = self.model.embed_text(self.ids[1:2], self.mask[1:2])  # the text without padding
            self.model.fuse(image, text)
        identity = torch.eye(self.text_length + image.mask.shape[1], dtype=torch.float64)
        flow = AttentionFlow(lambda module: recorded[module][0][0].mean(0), rollout)
        try:
            relevance = self.model.attention_flow(flow, identity[: self.text_length], identity[self.text_length :])
        except DualfuseError:
            return  # explain refuses the model, and says why
        for states, length in zip(relevance, (self.text_length, image.mask.shape[1]), strict=True):
            _require(states.shape == (length, len(identity)), "attention_flow returns the relevance of text and image")
            total = states.sum(1)
            _require_close(total, torch.ones_like(total), "the relevance of a token sums to one in rollout")


def _require_close(one: Tensor, other: Tensor, rule: str) -> None:
    _require(one.shape == other.shape and torch.allclose(one, other, atol=1e-9, rtol=1e-9), rule)


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise AssertionError(f"the contract of VisionLanguageModel is broken: {rule}")
