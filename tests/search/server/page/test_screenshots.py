"""Screenshots of the page for the documentation, over the test images of the demo.

``make test-page PAGE_MODEL=FOLDER SCREENSHOTS=docs/images`` makes them with a trained model. Without a model, a tiny
one of random weights stands in, and they go to a temporary folder: then the run tests that they can be made.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("playwright", reason="make test-page installs it")

from playwright.sync_api import Browser, Page, expect
from search_page import SearchPage

from dualfuse import hub
from dualfuse.hub import LoadedModel

ROOT = Path(__file__).resolve().parents[4]
LARGEST = 200_000  # bytes of a screenshot


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images of the demo as files that are named after their captions, one folder per kind."""
    folder, names = tmp_path_factory.mktemp("demo"), set[str]()
    with tarfile.open(next(ROOT.glob("examples/openpics-mini/*-test-*.tar"))) as tar:
        files = {member.name: ((stream := tar.extractfile(member)) and stream.read()) or b"" for member in tar}
    for number, (key, data) in enumerate(files.items()):
        if not key.endswith(".jpg"):
            continue
        about = json.loads(files[key.replace(".jpg", ".json")])
        name = f"{about['kind']}/{re.sub('[^a-z0-9]+', ' ', about['captions'][0].lower()).strip()[:60]}"
        path = folder / (f"{name} {number}.jpg" if name in names else f"{name}.jpg")
        names.add(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def demo(loaded: LoadedModel, collection: Path, serve: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    trained = os.environ.get("DUALFUSE_PAGE_MODEL")
    with serve(hub.load(Path(trained)) if trained else loaded, collection) as address:
        yield address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("DUALFUSE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))


def save(page: Page, path: Path) -> None:
    """Save what is seen as a PNG of 256 colours, or of fewer if the file would be too large."""
    page.wait_for_load_state("networkidle")
    with Image.open(io.BytesIO(page.screenshot(animations="disabled"))) as image:
        for colors in (256, 128, 64):
            small = image.convert("RGB").quantize(colors, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            small.save(path, optimize=True)
            if path.stat().st_size < LARGEST:
                return
    pytest.fail(f"{path} has {path.stat().st_size:,} bytes")


@pytest.mark.parametrize(
    ("name", "width", "height", "scheme"),
    [("serve", 1280, 800, "light"), ("serve-dark", 1280, 800, "dark"), ("serve-phone", 320, 640, "light")],
)
def test_results(browser: Browser, demo: str, folder: Path, name: str, width: int, height: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    search = SearchPage(context.new_page(), demo).open("?q=a+red+flower&anyway=1")
    expect(search.cards.first).to_be_visible()
    save(search.page, folder / f"{name}.png")
    context.close()


def test_details(browser: Browser, demo: str, folder: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    search = SearchPage(context.new_page(), demo).open("?q=a+flag+with+a+star&anyway=1")
    search.page.locator("#grid .open").first.click()
    expect(search.page.locator("#words :is(button, span)").first).not_to_have_text("Looking at the image…")
    if (word := search.page.locator("#words button", has_text="flag")).count():  # a model without attention has none
        word.hover()
    save(search.page, folder / "serve-details.png")
    context.close()
