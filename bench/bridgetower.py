"""Times BridgeTower of base size against the one of transformers, on the same weights: python bench/bridgetower.py -h

Texts for transformers are padded to the longest of the batch, as ours, or to 50, as published. Candidates take turns
in random order, so that a busy machine slows all of them; times are processor seconds, ratios are formed within a
round. Before that, what both give without dropout is compared, gradients included, and each candidate's peak memory is
measured in a process of its own.
"""

from __future__ import annotations

import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal
from unittest import mock

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BridgeTowerConfig, BridgeTowerForImageAndTextRetrieval, BridgeTowerForMaskedLM

from dualfuse.convert.formats.bridgetower_hf import layout
from dualfuse.convert.formats.bridgetower_hf_config import read_config
from dualfuse.convert.rename import import_tensors
from dualfuse.data.text.masking import mask_tokens
from dualfuse.data.text.tokenizer import EncodedText
from dualfuse.layers.heads import ITCHead
from dualfuse.losses.mlm import mlm_loss
from dualfuse.models.base import Tokens
from dualfuse.tasks.pretrain.pair_batch import PairBatch, collate_pairs
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig
from dualfuse.training.memory import keep_big_blocks

START, PAD, END, MASK = 0, 1, 2, 50_264  # of RoBERTa
PUBLISHED_LENGTH = 50
PRETRAINING = PairsConfig(
    itc_weight=0.0, mlm_weight=1.0, itc_features="unimodal", negative_hardness=0.0, negatives_per_pair=0
)
"""Of BridgeTower: masked words, and matching in which half of the pairs have a wrong image."""
WORKS = ("match", "rank", "words", "words+match")
"""Log-odds of pairs; of every image with every text; a step of masked words; and one of pre-training."""

Work = Literal["match", "rank", "words", "words+match"]
Run = tuple[Work, str]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    works: tuple[Work, ...] = WORKS
    batch: int = 4
    threads: int = 1
    rounds: int = 3
    peak_of: str = ""
    """Only print by how many MiB the first run of this candidate raises the peak memory of the process."""


@dataclass(frozen=True)
class Ours:
    """dualfuse."""

    task: Pairs

    def do(self, work: Work, batch: PairBatch) -> Tensor:
        """Return log-odds or a loss; images and texts are embedded once, whatever they are paired with."""
        if work == "words+match":
            with mock.patch("dualfuse.losses.hard_negatives.sample_negatives", first_allowed):
                return self.task(batch).loss
        image = self.task.model.embed_image(batch["image"])
        if work == "words":
            return self.words(image, batch)
        text = self.task.model.embed_text(batch["ids"], batch["mask"])
        if work == "rank":
            images, texts = all_with_all(len(image))
            image, text = image.take(images), text.take(texts)
        return self.task.match_logit(image, text)

    def words(self, image: Tokens, batch: PairBatch) -> Tensor:
        """Return the loss of masked words."""
        masked = self.task.model.embed_text(batch["masked_ids"], batch["mask"])
        states = self.task.model.fuse(image, masked, positions=batch["positions"]).text
        return mlm_loss(self.task.mlm_head, states, batch["targets"])[0]

    @property
    def module(self) -> nn.Module:
        """What has the parameters."""
        return self.task

    def gradients(self) -> dict[str, Tensor]:
        """Return them by our names."""
        return found_gradients(self.task)


@dataclass(frozen=True)
class Theirs:
    """transformers; two of its classes on one model, as it has no class with both heads."""

    learner: BridgeTowerForMaskedLM
    matcher: BridgeTowerForImageAndTextRetrieval
    length: int = 0
    """Of padded texts; 0: the longest of the batch."""

    def do(self, work: Work, batch: PairBatch) -> Tensor:
        """Return log-odds or a loss."""
        if work == "words":
            return self.words(batch)
        if work == "words+match":
            return self.words(batch) + self.match_loss(batch)
        everyone = torch.arange(len(batch["ids"]))
        images, texts = all_with_all(len(everyone)) if work == "rank" else (everyone, everyone)
        logits = self.matcher(**self.inputs(batch["ids"][texts], batch["mask"][texts], batch["image"][images])).logits
        return logits[:, 1] - logits[:, 0]

    def words(self, batch: PairBatch) -> Tensor:
        """Return the loss of masked words."""
        inputs = self.inputs(batch["masked_ids"], batch["mask"], batch["image"])
        labels = torch.full_like(inputs["input_ids"], -100)
        texts, places = (batch["targets"] != -100).nonzero(as_tuple=True)
        labels[texts, batch["positions"][texts, places]] = batch["targets"][texts, places]
        return self.learner(**inputs, labels=labels).loss

    def match_loss(self, batch: PairBatch) -> Tensor:
        """Return the loss of matching; the second half of the texts gets the first image."""
        is_right = torch.arange(len(batch["ids"])) < len(batch["ids"]) // 2
        images = torch.arange(len(is_right)) * is_right
        inputs = self.inputs(batch["ids"], batch["mask"], batch["image"][images])
        return self.matcher(**inputs, labels=is_right.long()).loss

    def inputs(self, ids: Tensor, mask: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return arguments, texts padded."""
        missing = max(0, self.length - ids.shape[1])
        mask = F.pad(mask, (0, missing))
        ids = F.pad(ids, (0, missing)).masked_fill(~mask, PAD)
        return {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": images}

    @property
    def module(self) -> nn.Module:
        """What has the parameters."""
        return nn.ModuleList([self.learner, self.matcher])

    def gradients(self) -> dict[str, Tensor]:
        """Return them by our names."""
        return import_tensors(found_gradients(self.learner) | found_gradients(self.matcher), layout("add")).tensors


def candidates() -> dict[str, Ours | Theirs]:
    """Return them on the same memory; biases and norms are moved, as the zeros and ones they start at hide mistakes."""
    torch.manual_seed(0)
    config = BridgeTowerConfig(text_config={}, vision_config={})
    learner = BridgeTowerForMaskedLM(config)
    for parameter in learner.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.02 * torch.randn_like(parameter)
    with torch.device("meta"):
        matcher = BridgeTowerForImageAndTextRetrieval(config)
        task = PRETRAINING.build(read_config(config.to_dict(), {}).model.build())
    matcher.bridgetower = learner.bridgetower
    matcher.itm_score.fc = nn.Linear(2 * config.hidden_size, 2)
    found = import_tensors(learner.state_dict() | matcher.state_dict(), layout("add"))
    task.itc_heads[0] = ITCHead(PRETRAINING.itc_head, task.model.encode_widths, fused_width=task.model.fused_width)
    task.load_state_dict(task.itc_heads.state_dict(prefix="itc_heads.") | found.tensors, assign=True)
    theirs = Theirs(learner, matcher)
    return {"padded to 50": replace(theirs, length=PUBLISHED_LENGTH), "transformers": theirs, "ours": Ours(task)}


NAMES = ("padded to 50", "transformers", "ours")


def step(candidate: Ours | Theirs, work: Work, batch: PairBatch, *, dropout: bool = True) -> tuple[Tensor, float]:
    """Return what a candidate gives, and the processor seconds that took, a backward pass included where one learns."""
    learns = work.startswith("words")
    candidate.module.train(learns and dropout).zero_grad(set_to_none=True)
    before = time.process_time()
    with torch.inference_mode(not learns):
        result = candidate.do(work, batch)
    if learns:
        result.backward()
    return result.detach(), time.process_time() - before


def disagreement(ours: Ours, theirs: Theirs, work: Work, batch: PairBatch) -> str:
    """Return how results and gradients without dropout differ, relative to the size of theirs."""
    results, gradients = [], []
    for candidate in (theirs, ours):
        results.append(step(candidate, work, batch, dropout=False)[0])
        gradients.append(candidate.gradients())
        candidate.module.zero_grad(set_to_none=True)
    of_result = norm([results[1] - results[0]]) / norm(results[:1])
    if not gradients[0]:
        return f"{work}: {of_result:.0e}"
    known, found = gradients
    assert known.keys() == found.keys(), known.keys() ^ found.keys()
    of_gradients = norm(found[key] - known[key] for key in known) / norm(known.values())
    return f"{work}: {of_result:.0e}, gradients {of_gradients:.0e}"


def found_gradients(module: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of the parameters that have one."""
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def norm(tensors: Iterable[Tensor]) -> float:
    """Return the norm of all of them together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def all_with_all(number: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of images and texts of all combinations."""
    everyone = torch.arange(number)
    return everyone.repeat_interleave(number), everyone.repeat(number)


def first_allowed(logits: Tensor, allowed: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Stands for drawing wrong images, so that both candidates have the same."""
    return allowed.long().argmax(1), allowed.any(1)


def pairs(number: int, seed: int) -> PairBatch:
    """Return random images of 288 pixels, and random words in texts as long as captions are.

    Lengths follow those of Flickr8k's captions in tokens: median 13, mean 14, 90 % up to 19, 99 % up to 26.
    """
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(math.log(13.2), 0.29, number)).round().astype(int).clip(5, PUBLISHED_LENGTH)
    rows = []
    for place, length in enumerate(lengths.tolist()):
        ids = np.concatenate([[START], rng.integers(END + 1, MASK, length - 2), [END]])
        words = EncodedText(ids, np.concatenate([[-1], np.arange(length - 2), [-1]]), False)
        masked_ids, labels = mask_tokens(words, MASK + 1, MASK, rng)
        image = torch.from_numpy(rng.standard_normal((3, 288, 288), dtype=np.float32))
        texts = {"ids": ids, "masked_ids": masked_ids, "labels": labels}
        rows.append({"image": image, **texts, "image_id": place, "text_id": place, "source": 0})
    return collate_pairs(rows)


def peak(options: Options) -> float:
    """Return the MiB by which a run raises this process's peak: activations, gradients, and what is temporary."""
    candidate, batch = candidates()[options.peak_of], pairs(options.batch, seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(candidate, options.works[0], batch)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peaks(runs: Iterable[Run]) -> dict[Run, float]:
    """Return the peak of every run, each from a process of its own."""
    found = {}
    for work, name in runs:
        command = [sys.executable, *sys.argv, "--works", work, "--peak-of", name]
        found[work, name] = float(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def report(rounds: list[dict[Run, float]], memory: Mapping[Run, float]) -> None:
    """Print a line per run; ratios are its seconds / ours, with the smallest and the largest of a round."""
    print(f"{'':<26}{'CPU s':>8}{'/ ours':>8}{'(smallest to largest)':>24}{'peak MiB':>10}")
    for work, name in memory:
        seconds = statistics.median(times[work, name] for times in rounds)
        ratios = [times[work, name] / times[work, "ours"] for times in rounds]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        ratio = f"{statistics.median(ratios):8.2f}{spread:>24}"
        print(f"{work:<12}{name:<14}{seconds:8.2f}{ratio}{memory[work, name]:10.0f}")


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    keep_big_blocks()
    if options.peak_of:
        print(peak(options))
        return
    runs: list[Run] = [(work, name) for work in options.works for name in NAMES]
    memory = peaks(runs)  # first: a child's peak counts the memory of the process that started it
    everyone = candidates()
    ours, theirs = everyone["ours"], everyone["transformers"]
    assert isinstance(ours, Ours) and isinstance(theirs, Theirs)
    print(options, "\nours and transformers differ, without dropout, by")
    for work in options.works:
        print(disagreement(ours, theirs, work, pairs(options.batch, seed=0)))
    rounds = []
    for number in range(1, 1 + options.rounds):
        batch = pairs(options.batch, seed=number)
        rounds.append(
            {(work, name): step(everyone[name], work, batch)[1] for work, name in random.sample(runs, len(runs))}
        )
    report(rounds, memory)


if __name__ == "__main__":
    main()
