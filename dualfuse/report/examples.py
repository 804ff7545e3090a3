"""Example queries of a run: texts of its validation data, searched among its images by the model of the run."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.data.image.decode import decode
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan
from dualfuse.recipe import Recipe
from dualfuse.report import markup
from dualfuse.report.demo.evaluate import queries
from dualfuse.report.demo.page import query_cards
from dualfuse.report.demo.results import ImageResult
from dualfuse.run_folder import model_of
from dualfuse.training.dataloader import open_sets

IMAGES = 300
"""Images that are searched, the first usable ones of the validation data: to embed more would take long."""
SIDE = 160
"""Longest side of the images in the page, in pixels."""
JPEG_QUALITY = 85


class FirstSamples(list[Sample]):
    """Samples in memory, in the form of a set."""

    def key(self, index: int) -> str:
        """Return the key of a sample."""
        return self[index].key


def example_queries(run: Path) -> str:
    """Return the section of example queries of a run, or why there are none.

    Empty for a run without validation data, and for a task whose model cannot search.
    """
    try:
        recipe = hub.recipe_from_file(run / "recipe.json")
        if not recipe.data.validation:
            return ""
        loaded = hub.load(model_of(run), device=dist.device())
        if not loaded.task.can_search:
            return ""
        return _section(loaded, FirstSamples(islice(_usable(recipe), IMAGES)))
    except (DualfuseError, OSError) as error:  # deleted data, a run without a model
        return markup.section("Example queries", lead=f"None: {error}")


def _usable(recipe: Recipe) -> Iterator[Sample]:
    """Yield the validation samples with a text and an image that can be decoded."""
    [validation] = open_sets(recipe, (recipe.data.validation,))
    for index in range(len(validation)):
        try:
            sample = validation[index]
            decode(sample.image)
        except (BrokenSample, DualfuseError):
            continue
        if sample.texts:
            yield sample


def _section(loaded: hub.LoadedModel, samples: FirstSamples) -> str:
    drawn = queries(loaded, samples, Plan(rerank=0, num_workers=0)) if samples else ()
    if not drawn:
        return ""
    numbers = {query.target for query in drawn} | {number for query in drawn for number, _ in query.nearest}
    return markup.section(
        "Example queries",
        *query_cards(drawn, tuple(_images(samples, sorted(numbers)))),
        lead=f"Texts of the validation data, searched among its first {len(samples):,} images by the dual encoder, "
        "drawn at random from successes and failures. Each card shows the image of the text, then the first results.",
    )


def _images(samples: FirstSamples, numbers: Iterable[int]) -> Iterator[ImageResult]:
    for number in numbers:
        image = Image.fromarray(decode(samples[number].image).permute(1, 2, 0).numpy())
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=JPEG_QUALITY)
        yield ImageResult(number, "image/jpeg", base64.b64encode(file.getvalue()).decode(), samples[number].texts[0])
