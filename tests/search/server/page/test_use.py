"""Use of the page without a mouse, over reloads, on small screens, in the dark, with faults, by screen readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="make test-page installs it")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect
from search_page import SearchPage

from dualfuse.hub import LoadedModel


def test_everything_by_keyboard(search: SearchPage) -> None:
    search.open()
    page, press = search.page, search.page.keyboard.press
    press("/")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("a red cat")
    press("Enter")
    search.settled()
    expect(page.locator("#status")).to_contain_text("re-ranked")
    names = search.names()
    press("ArrowDown")
    focused = page.locator(".card:focus-within .name")
    expect(focused).to_have_attribute("title", names[0])
    press("ArrowRight")
    expect(focused).to_have_attribute("title", names[1])
    press("ArrowDown")
    columns = page.evaluate("getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length")
    expect(focused).to_have_attribute("title", names[1 + columns])
    press("Home")
    press("x")
    expect(page.locator("#marked-count")).to_have_text("1 marked")
    press("Enter")
    expect(page.locator("#details")).to_be_visible()
    press("ArrowRight")
    expect(page.locator("#details-title")).to_have_text(Path(names[1]).name)
    press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    press("e")
    expect(page.locator("#words button").first).to_be_focused()
    press("ArrowRight")
    expect(page.locator("#words button").nth(1)).to_have_attribute("aria-pressed", "true")
    press("x")
    expect(page.locator("#marked-count")).to_have_text("0 marked") if names[0] == page.locator(
        "#fields td"
    ).first.inner_text() else expect(page.locator("#marked-count")).to_have_text("2 marked")
    press("Escape")
    press("Escape")
    expect(page.locator("#text")).to_be_focused()
    press("Escape")
    expect(page.locator("#text")).to_have_value("")
    expect(page.locator("#title")).to_have_text("All images")


def test_state_is_in_the_url_for_reload_and_back(search: SearchPage) -> None:
    search.open()
    page = search.page
    search.search("a cat")
    cats = search.names()
    search.search("a big dog -fish")
    dogs = search.names()
    page.locator("label", has_text="Fold copies").click()
    search.settled()
    page.locator("#grid .open").first.click()
    title = page.locator("#details-title").inner_text()
    page.reload()
    expect(page.locator("#details-title")).to_have_text(title)
    expect(page.locator("#text")).to_have_value("a big dog -fish")
    expect(page.locator("#fold")).not_to_be_checked()
    page.go_back()
    expect(page.locator("#details")).to_be_hidden()
    page.go_back()
    expect(page.locator("#fold")).to_be_checked()
    search.settled()
    assert search.names()[:20] == dogs[:20]
    page.go_back()
    expect(page.locator("#text")).to_have_value("a cat")
    search.settled()
    assert search.names() == cats
    page.go_forward()
    expect(page.locator("#text")).to_have_value("a big dog -fish")


def test_an_edited_url_never_breaks_the_page(search: SearchPage) -> None:
    for query in ("?f.folder=%7Bbroken&sure=x&not=", "?show=nothing&image=gone&q=a+dog", "?f.folder=5&like=&not="):
        search.open(query)
        expect(search.cards.first).to_be_visible()
    search.open("?q=a+dog&f.nothing=%5B1%5D")
    expect(search.page.locator("#empty-text")).to_contain_text("no image has the field", ignore_case=True)
    search.page.get_by_role("button", name="Start again").click()
    expect(search.cards.first).to_be_visible()
    search.errors.clear()  # the browser's own report of status 422


def test_dark_mode_follows_the_system_and_the_switch(search: SearchPage) -> None:
    page = search.page
    page.emulate_media(color_scheme="dark")
    search.open()

    def lightness() -> int:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in color.removeprefix("rgb(").rstrip(")").split(","))

    assert lightness() < 150
    page.locator("#theme").click()  # light
    assert lightness() > 600
    page.reload()
    search.settled()
    assert lightness() > 600
    page.emulate_media(color_scheme="light")
    page.locator("#theme").click()  # dark
    assert lightness() < 150
    page.locator("#theme").click()  # as the system
    assert lightness() > 600


def test_nothing_is_wider_than_a_screen_of_320_pixels(search: SearchPage) -> None:
    page = search.page
    page.set_viewport_size({"width": 320, "height": 640})
    search.open()
    search.search("a red dog -fish")
    page.locator("#probability").fill("1")
    for field in ("folder", "name", "time", "size"):
        page.locator(f"[data-field={field}] summary").click()
        menu = page.locator(f"[data-field={field}] .menu").bounding_box()
        assert menu and menu["x"] >= 0 and menu["x"] + menu["width"] <= 320
    assert search.scroll_width() <= 320
    page.keyboard.press("Escape")
    page.locator("#probability").fill("0")
    search.settled()
    page.locator("#grid .open").first.click()
    expect(page.locator("#words button").first).to_be_visible()
    assert page.evaluate(
        "(() => { const all = document.getElementById('details'); return all.scrollWidth <= all.clientWidth; })()"
    )
    page.keyboard.press("x")
    page.keyboard.press("Escape")
    box = page.locator("#marked").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 320
    page.locator("#help").click()
    assert search.scroll_width() <= 320


def serious(page: Page) -> list[str]:
    """Return the serious and critical findings of axe-core."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(search: SearchPage, scheme: str) -> None:
    page = search.page
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    search.open()
    findings = serious(page)
    search.search("a red dog -fish")
    page.locator("#grid .tick").first.dispatch_event("click")
    page.locator("[data-field=folder] summary").click()
    findings += serious(page)
    page.keyboard.press("Escape")
    page.locator("#grid .open").first.click()
    expect(page.locator("#words button").first).to_be_visible()
    findings += serious(page)
    page.keyboard.press("Escape")
    page.locator("#help").click()
    findings += serious(page)
    search.open("?q=a+dog&f.folder=%5B%22nowhere%22%5D")
    expect(page.locator("#empty-title")).to_have_text("Nothing here")
    findings += serious(page)
    page.goto(search.address + "/docs")
    expect(page.locator("section").first).to_be_visible()
    assert findings + serious(page) == []


def test_names_are_text_and_never_html(search: SearchPage) -> None:
    search.open("?f.folder=%5B%22odd%22%5D&q=a+dog")
    assert any("<img" in name for name in search.names())
    page = search.page
    page.locator(".card", has_text="<img").locator(".open").click()
    expect(page.locator("#details-title")).to_contain_text("<img src=x")
    assert page.locator("img[src=x]").count() == 0 and page.title() != "1"
    policy = page.request.get(search.address).headers["content-security-policy"]
    assert "'unsafe-inline'" not in policy and "default-src" in policy


def test_errors_are_shown_in_words(search: SearchPage) -> None:
    search.open()
    page = search.page

    def busy(route: Route) -> None:
        body = {"error": {"message": "too many requests are waiting; repeat this one"}}
        route.fulfill(status=429, content_type="application/json", body=json.dumps(body))

    page.route("**/v1/search", busy)
    page.locator("#text").fill("a dog")
    page.locator("#text").press("Enter")
    expect(page.locator("#empty-title")).to_have_text("Many people are searching")
    expect(page.locator("#empty-text")).to_have_text("Too many requests are waiting; repeat this one.")
    page.unroute("**/v1/search")
    page.route("**/v1/search", lambda route: route.abort())
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#empty-text")).to_contain_text("cannot be reached")
    page.unroute("**/v1/search")
    page.get_by_role("button", name="Try again").click()
    expect(search.cards.first).to_be_visible()
    search.errors.clear()  # the browser's own reports of both


def test_a_token_is_asked_for_and_kept(browser: Browser, loaded: LoadedModel, photos: Path, serve) -> None:
    with serve(loaded, photos, token="s" * 32) as address:
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#login")).to_be_visible()
        page.locator("#token").fill("wrong")
        page.locator("#token").press("Enter")
        expect(page.locator("#login-error")).to_have_text("This token is not the right one.")
        page.locator("#token").fill("s" * 32)
        page.locator("#token").press("Enter")
        expect(page.locator("#grid .card").first).to_be_visible()
        page.reload()
        expect(page.locator("#grid .card").first).to_be_visible()
        context.close()
