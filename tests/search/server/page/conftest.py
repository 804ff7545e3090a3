"""A service of a tiny model on a real port, a headless Chromium, and a page in it. Run by ``make test-page``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from running import running
from tiny import png_image

from dualfuse.hub import LoadedModel
from dualfuse.search.server.options import ServerOptions

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from search_page import SearchPage

OPTIONS = ServerOptions(window_ms=1, budget_ms=60_000)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60_000  # milliseconds, for busy machines
HTML, FORMULA = "<img src=x onerror=document.title=1>.png", "=1+cmd|' calc'!A0.png"  # names of files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images in two folders, a near copy, and names that are HTML or a formula; one per day of early 2026."""
    folder = tmp_path_factory.mktemp("photos")
    names = [f"{'spring' if number % 3 else 'autumn'}/{number:02}.png" for number in range(56)]
    for number, name in enumerate([*names, f"odd/{HTML}", f"odd/{FORMULA}", "odd/first copy.png", "odd/last.png"]):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png_image(0 if "copy" in name else number, 48))
        os.utime(path, (1_767_268_800 + 86_400 * number,) * 2)  # noon UTC
    return folder


@pytest.fixture(scope="session")
def address(loaded: LoadedModel, photos: Path) -> Iterator[str]:
    with running(loaded, photos) as address:
        yield address


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[str]]:
    return running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, CHROMIUM)), own if Path(own).exists() else None)
        assert path, "no Chromium is installed; run make test-page"
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def search(browser: Browser, address: str) -> Iterator[SearchPage]:
    """The page of the service, empty; the test fails if the page reported an error."""
    from playwright.sync_api import expect
    from search_page import SearchPage

    expect.set_options(timeout=PATIENCE)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light", locale="en-GB")
    context.set_default_timeout(PATIENCE)
    page = SearchPage(context.new_page(), address)
    yield page
    context.close()
    assert not page.errors
