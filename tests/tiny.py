"""What tests of training share: shards of noise with captions, a tokenizer of few words, and a recipe for them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from dualfuse.data.image.transform import Augment
from dualfuse.data.sample import Sample
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training import loop
from dualfuse.training.run_log import read_log

WORDS = ("a", "the", "red", "blue", "green", "small", "big", "cat", "dog", "tree", "house", "fish", "runs", "sleeps")
CLOCKS = ("seconds", "samples_per_second")
MODEL = VLMoConfig(
    width=32,
    depth=2,
    heads=2,
    vl_expert_start=1,
    patch_size=8,
    image_size=(32, 32),
    vocab_size=5 + len(WORDS),
    text_length=12,
    drop_path=0.2,
)

BRIDGETOWER = BridgeTowerConfig(
    image=CLIPViTConfig(width=64, depth=2, patch_size=8, image_size=(32, 32)),
    text=RobertaConfig(
        width=64, depth=2, heads=2, feed_forward=64, vocab_size=MODEL.vocab_size, text_length=12, pad_id=0
    ),
    width=32,
    heads=2,
    feed_forward=64,
    layers=2,
    dropout=0.0,
)


def png_image(seed: int, size: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(file, "PNG")
    return file.getvalue()


def caption(seed: int, words: int = 5) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def samples(number: int) -> list[Sample]:
    """One to three captions each; from the twentieth on the images come again."""
    return [
        Sample(f"{n:03d}", png_image(n % 20), tuple(caption(9 * n + k) for k in range(1 + n % 3)))
        for n in range(number)
    ]


def shards(folder: Path, content: Sequence[Sample] | int, name: str = "train") -> str:
    write_shards(samples(content) if isinstance(content, int) else content, folder, name)
    return str(folder / f"{name}-*.tar")


def tokenizer(folder: Path) -> str:
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    made = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def recipe(folder: Path, *, images: Sequence[Sample] | int = 40) -> Recipe:
    """Ten steps of eight pairs with everything that is random: dropout, drop-path, drawn negatives, augmentation."""
    return Recipe(
        name="tiny",
        model=MODEL,
        task=PairsConfig(),
        data=Data(
            train=(shards(folder / "data", images),),
            image_size=(32, 32),
            augment=Augment(rand_augment=False),
            text_length=12,
            tokenizer=tokenizer(folder / "words"),
            batch_size=8,
            num_workers=0,
        ),
        optim=Optim(lr=2e-3, warmup=2, grad_clip_norm=1.0),
        run=Run(steps=10, save_every=5, log_every=1),
    )


def changed(recipe: Recipe, **changes: object) -> Recipe:
    """Return the recipe with other fields, each in whichever part has it: changed(recipe, steps=3, batch=4)."""
    parts = {}
    for part in ("model", "task", "data", "optim", "run"):
        value = getattr(recipe, part)
        parts[part] = replace(value, **{name: changes.pop(name) for name in vars(value) if name in changes})
    return replace(recipe, **parts, **changes)


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "final" / "model.safetensors")


def lines(out: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in read_log(out)]


def at_step(step: int, do: Callable[[], None]) -> Callable[..., None]:
    """Return a ``seed_step`` that does something in the middle of a step."""
    seed_step = loop.seed_step

    def seed(run: object, now: int, micro: int) -> None:
        if now == step:
            do()
        seed_step(run, now, micro)  # type: ignore[arg-type]

    return seed


def stopped(recipe: Recipe, out: Path, step: int = 7) -> Path:
    """Train until Ctrl-C in the middle of a step, and return the folder of the run."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "seed_step", at_step(step, interrupt))
        loop.train((recipe,), out)
    return out


def interrupt() -> None:
    raise KeyboardInterrupt


def clip_tokenizer_file(folder: Path) -> str:
    """Write a tokenizer of words with CLIP's special tokens, which has no mask token."""
    vocabulary = {word: number for number, word in enumerate(("[UNK]", *WORDS, "<|startoftext|>", "<|endoftext|>"))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    path = folder / "clip_tokenizer.json"
    words.save(str(path))
    return str(path)


def clip_recipe(folder: Path) -> Recipe:
    """Return a recipe that trains a tiny CLIP for three steps."""
    start = recipe(folder)
    towers = DualEncoderConfig(
        CLIPViTConfig(width=32, depth=2, heads=2, patch_size=8, image_size=(32, 32)),
        CLIPTextConfig(width=16, depth=1, heads=2, feed_forward=32, vocab_size=MODEL.vocab_size, text_length=12),
        init_std=0.2,
    )
    task = PairsConfig(itm_weight=0, mlm_weight=0, itc_features="unimodal", itc_head=ITCHeadConfig(24))
    data = replace(start.data, tokenizer=clip_tokenizer_file(folder))
    return replace(start, name="tiny-clip", model=towers, task=task, data=data, run=replace(start.run, steps=3))
