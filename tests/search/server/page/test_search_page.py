"""The page of the service in a real browser: queries, filters, paging, details, marks."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import png_image

pytest.importorskip("playwright", reason="make test-page installs it")

from playwright.sync_api import Browser, Route, expect
from search_page import SearchPage, is_search, request_of

from dualfuse.data.sample import Sample
from dualfuse.hub import LoadedModel
from dualfuse.prepare.shard_writer import write_shards

Serve = Callable[..., AbstractContextManager[str]]


def test_words_are_searched_while_typing_and_re_ranked_on_enter(search: SearchPage) -> None:
    search.open()
    with search.page.expect_response(is_search()) as typed:
        search.page.locator("#text").press_sequentially("a red dog")
    assert request_of(typed.value)["rerank"] == 0
    body = search.search("a red dog")
    assert body["text"] == "a red dog" and body["rerank"] == 40
    hits = search.api("/v1/search", body)["hits"]
    assert search.names() == [hit["name"] for hit in hits]
    moves = [hit["rank_before"] - rank for rank, hit in enumerate(hits)]
    badges = [f"▲ {move}" if move > 0 else f"▼ {-move}" for move in moves if move]
    assert badges and search.page.locator(".badge:not(.fold)").all_text_contents() == badges
    expect(search.page.locator("#status")).to_contain_text("best 40 re-ranked")
    search.page.locator("#rerank-switch").click()
    expect(search.page.locator(".badge:not(.fold)")).to_have_count(0)
    assert search.names() == [hit["name"] for hit in search.api("/v1/search", {**body, "rerank": 0})["hits"]]


def test_negative_words_can_be_removed(search: SearchPage) -> None:
    search.open()
    body = search.search('a dog -fish -"big house"')
    assert body["text"] == "a dog" and body["not"] == [{"text": "fish"}, {"text": "big house"}]
    assert search.names() == [hit["name"] for hit in search.api("/v1/search", body)["hits"]]
    search.page.get_by_label("Remove “big house”").click()
    search.settled()
    expect(search.page.locator("#text")).to_have_value("a dog -fish")
    expect(search.page.locator(".pill")).to_have_count(1)


def test_a_dropped_image_finds_itself_and_survives_a_reload(search: SearchPage) -> None:
    search.open()
    search.drop(png_image(7, 48))
    expect(search.page.locator("#grid .name").first).to_have_attribute("title", "spring/07.png")
    search.page.reload()
    expect(search.page.locator("#grid .name").first).to_have_attribute("title", "spring/07.png")
    expect(search.page.locator("#query-image img")).to_be_visible()
    search.page.get_by_label("Remove the image from the query").click()
    expect(search.page.locator("#title")).to_have_text("All images")


def test_an_image_pasted_from_the_clipboard_and_words_are_one_query(search: SearchPage) -> None:
    search.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=search.address)
    search.open("?q=a+dog")
    files = search.files(png_image(10, 48))
    search.page.locator("#text").focus()
    search.page.evaluate(
        "(data) => navigator.clipboard.write([new ClipboardItem({ 'image/png': data.files[0] })])", files
    )
    with search.page.expect_response(is_search()) as answer:
        search.page.keyboard.press("Control+V")
    body = request_of(answer.value)
    assert body["text"] == "a dog" and body["image"].startswith("data:image/png;base64,")
    search.settled()
    assert search.names() == [hit["name"] for hit in search.api("/v1/search", body)["hits"]]
    only = search.api("/v1/search", {"image": body["image"], "top": 1})["hits"][0]
    assert (only["name"], round(only["cosine"], 4)) == ("spring/10.png", 1)


def test_files_that_are_not_images_are_refused_in_words(search: SearchPage) -> None:
    search.open()
    search.drop(b"hello", "text/plain")
    expect(search.page.locator("#notice")).to_contain_text("not an image")
    search.drop(b"\x89PNG broken")
    expect(search.page.locator("#empty-text")).to_contain_text("not a usable image")
    search.errors = [error for error in search.errors if "415" not in error]  # the browser's own report of the status


def test_a_large_image_is_scaled_down_in_the_browser(search: SearchPage) -> None:
    search.open()
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert len(file.getvalue()) > 400_000
    with search.page.expect_response(is_search()) as answer:
        search.drop(file.getvalue())
    assert request_of(answer.value)["image"].startswith("data:image/jpeg;base64,") and answer.value.status == 200


def test_filters_of_values_beginnings_dates_and_sizes(search: SearchPage, photos: Path) -> None:
    search.open("?q=a+dog")
    page = search.page
    page.locator("[data-field=folder] summary").click()
    page.locator("[data-field=folder]").get_by_label("autumn").check()
    expect(page.locator("[data-field=folder] summary")).to_have_text("Folder: autumn")
    expect(search.cards).to_have_count(19)
    page.locator("[data-field=folder]").get_by_label("odd").check()
    expect(search.cards).to_have_count(22)  # of 23, one is a near copy
    page.locator("[data-field=name] summary").click()
    page.get_by_label("Name begins with").fill("0")
    page.get_by_label("Name begins with").press("Enter")
    expect(search.cards).to_have_count(4)
    assert set(search.names()) == {"autumn/00.png", "autumn/03.png", "autumn/06.png", "autumn/09.png"}
    page.locator("[data-field=time] summary").click()
    page.get_by_label("Date from").fill("2026-01-04")
    page.get_by_label("Date to").fill("2026-01-07")
    page.get_by_label("Date to").blur()
    expect(search.cards).to_have_count(2)
    assert set(search.names()) == {"autumn/03.png", "autumn/06.png"}
    expect(page.locator("[data-field=time] summary")).to_have_text(re.compile("Date: 2026-01-04 . 2026-01-07"))
    names = search.names()
    page.reload()
    search.settled()
    assert search.names() == names
    page.locator("[data-field=size] summary").click()
    page.get_by_label("Size to").fill("0.001")
    page.get_by_label("Size to").blur()
    expect(page.locator("#empty-title")).to_have_text("Nothing here")
    page.get_by_role("button", name="Remove the filters").click()
    expect(search.cards).to_have_count(40)


def test_pages_follow_while_scrolling(search: SearchPage) -> None:
    search.open("?q=a+cat&fold=0")
    page = search.page
    expect(search.cards).to_have_count(40)
    page.locator("#grid .card").last.scroll_into_view_if_needed()
    expect(search.cards).to_have_count(60)
    assert len(set(search.names())) == 60
    assert page.locator("#grid img[loading=lazy]").count() == 60


def test_near_copies_are_folded_and_unfolded(search: SearchPage) -> None:
    search.open("?q=a+cat&sure=0")
    search.page.locator("#grid .card").last.scroll_into_view_if_needed()
    expect(search.cards).to_have_count(59)
    badge = search.page.locator(".badge.fold")
    expect(badge).to_have_text("+ 1 near copy")
    badge.click()
    expect(search.page.locator(".card.is-copy")).to_have_count(1)
    card = search.page.locator(".card", has=badge)
    names = {card.locator(".name").get_attribute("title"), search.page.locator(".is-copy .name").get_attribute("title")}
    assert names == {"autumn/00.png", "odd/first copy.png"}
    card.locator(".open").click()
    expect(search.page.locator("#copies-list img")).to_have_count(1)
    search.page.keyboard.press("Escape")
    badge.click()
    expect(search.page.locator(".card.is-copy")).to_have_count(0)


def test_the_slider_counts_hits_that_are_sure_enough(search: SearchPage) -> None:
    search.open()
    hits = search.api("/v1/search", search.search("a small dog") | {"top": 96, "rerank": 96})["hits"]
    sure = sorted((hit["probability"] for hit in hits), reverse=True)[7]
    percent = max(1, min(99, int(100 * sure)))
    slider = search.page.locator("#probability")
    slider.fill(str(percent))  # as a drag does: input, then change
    kept = [hit["name"] for hit in hits if hit["probability"] >= percent / 100]
    expect(search.page.locator("#kept")).to_have_text(f"{len(kept)} of {len(hits)}")
    search.settled()
    assert search.names() == kept
    assert f"sure={percent}" in search.page.url


def test_improbable_hits_are_not_shown_as_results(search: SearchPage) -> None:
    def improbable(route: Route) -> None:
        answer = route.fetch()
        content = answer.json()
        for number, hit in enumerate(content["hits"]):
            hit["probability"] = None if hit["probability"] is None else 0.04 / (1 + number)
        route.fulfill(response=answer, json=content)

    search.page.route("**/v1/search", improbable)
    search.open()
    search.search("a tree")
    expect(search.page.locator("#empty-title")).to_have_text("Nothing is likely")
    expect(search.page.locator("#empty-text")).to_contain_text("the best one has 4 %")
    expect(search.cards).to_have_count(0)
    search.page.get_by_role("button", name="Show the nearest images").click()
    expect(search.cards).to_have_count(40)


def test_a_calibrated_model_is_sure_without_re_ranking(search: SearchPage) -> None:
    def calibrated(route: Route) -> None:
        answer = route.fetch()
        content = answer.json()
        for number, hit in enumerate(content.get("hits", ())):
            hit["probability"] = 0.9 if number < 3 else 0.2
        route.fulfill(response=answer, json=content | ({"calibrated": True} if "can_match" in content else {}))

    search.page.route(re.compile("/v1/(search|info)"), calibrated)
    search.open("?q=a+tree&rerank=0&sure=50")
    expect(search.page.locator("#kept")).to_have_text("3 of 59")
    expect(search.cards).to_have_count(3)
    expect(search.page.locator("#rerank")).not_to_be_checked()
    with search.page.expect_response(is_search()):
        search.page.locator("#text").press_sequentially("s")
    expect(search.cards).to_have_count(3)  # while typing, too


def test_a_re_ranking_that_stopped_early_can_be_continued(search: SearchPage) -> None:
    def stopped(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"budget_exceeded": True})

    search.page.route("**/v1/search", stopped)
    search.open("?q=a+tree")
    expect(search.page.locator("#status")).to_contain_text("stopped at its time budget")
    search.page.unroute("**/v1/search")
    search.page.get_by_role("button", name="Re-rank more").click()
    expect(search.page.locator("#status")).not_to_contain_text("stopped")
    expect(search.page.locator("#rerank-more")).to_be_hidden()


def test_details_show_a_map_per_word_and_lead_on(search: SearchPage) -> None:
    search.open()
    search.search("a red dog")
    page, best = search.page, search.names()[0]
    page.locator("#grid .open").first.click()
    expect(page.locator("#fields")).to_contain_text(best)
    words = page.locator("#words button")
    expect(words).to_have_count(4)
    expect(page.locator("#heat")).to_be_visible()
    canvas, stage = page.locator("#heat").bounding_box(), page.locator("#details-image").bounding_box()
    assert canvas and stage and canvas["width"] == pytest.approx(canvas["height"], abs=1)  # as the image
    assert canvas["width"] == pytest.approx(min(stage["width"], stage["height"]) - 36, abs=1)  # inside of the padding
    drawn = "() => document.getElementById('heat').toDataURL()"
    everything = page.evaluate(drawn)
    words.filter(has_text="dog").hover()
    expect(words.filter(has_text="dog")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate(drawn) != everything
    expect(words.filter(has_text="dog")).to_contain_text("without:")
    assert "“dog”" in (page.locator("#heat").get_attribute("aria-label") or "")
    page.get_by_role("button", name="Not this").click()
    expect(page.locator(".pill img")).to_have_count(1)
    search.settled()
    page.locator("#grid .open").nth(1).click()
    second = page.locator("#details-title").inner_text()
    page.get_by_role("button", name="More like this").click()
    search.settled()
    expect(page.locator("#grid .name").first).to_have_attribute("title", re.compile(re.escape(second)))


def test_the_image_of_a_query_is_explained(search: SearchPage) -> None:
    search.open("?q=a+dog")
    search.drop(png_image(3, 48))
    search.page.get_by_label("Look at the image of the query").click()
    expect(search.page.locator("#words button")).to_have_count(3)
    expect(search.page.locator("#similar")).to_be_hidden()


def test_marked_images_are_kept_and_downloaded(search: SearchPage) -> None:
    search.open("?f.folder=%5B%22odd%22%5D")
    page = search.page
    expect(search.cards).to_have_count(4)
    for card in search.cards.all():
        card.hover()
        card.locator(".tick").click()
    page.reload()
    expect(page.locator("#marked-count")).to_have_text("4 marked")
    with page.expect_download() as download:
        page.locator("#as-csv").click()
    rows = list(csv.DictReader(download.value.path().read_text().splitlines()))
    assert {row["name"] for row in rows} >= {"odd/last.png"} and len(rows) == 4
    with page.expect_download() as download:
        page.locator("#as-json").click()
    records = json.loads(download.value.path().read_text())
    assert {record["name"] for record in records} == {row["name"] for row in rows}
    assert all(re.fullmatch("[0-9a-f]{16}", record["id"]) and record["size"] > 0 for record in records)
    page.locator("#unmark").click()
    expect(page.locator("#marked")).to_be_hidden()


def test_cells_of_a_table_are_never_formulas(search: SearchPage) -> None:
    search.open()
    table = search.page.evaluate(
        """async () => {
            const marked = await import("/page/marked.js");
            marked.clear();
            const fields = { sku: "=1+1", note: "a \\"b\\", c", price: -3, id: "stolen" };
            marked.toggle({ id: "0", name: "@SUM(A1)", caption: " \\t+1", cosine: 0.5, fields });
            const table = marked.toCsv();
            marked.clear();
            return table;
        }"""
    )
    (row,) = csv.DictReader(table.splitlines())
    assert (row["id"], row["name"], row["caption"], row["sku"]) == ("0", "'@SUM(A1)", "' \t+1", "'=1+1")
    assert (row["note"], row["price"]) == ('a "b", c', "-3")


def test_columns_of_the_owner_are_filters_fields_and_cells(
    browser: Browser, loaded: LoadedModel, serve: Serve, tmp_path: Path
) -> None:
    keep = [{"sku": f"=A{number % 2}", "price": 10.0 * number} for number in range(6)]
    write_shards([Sample(f"{n}", png_image(n, 48), ("a dog",), {"keep": keep[n]}) for n in range(6)], tmp_path, "shop")
    with serve(loaded, tmp_path) as address:
        page = browser.new_page()
        search = SearchPage(page, address).open("?q=a+dog&anyway=1")
        page.locator("[data-field=price] summary").click()
        page.get_by_label("Price from").fill("15")
        page.get_by_label("Price to").fill("40")
        page.get_by_label("Price to").blur()
        expect(search.cards).to_have_count(3)
        page.locator("[data-field=sku] summary").click()
        page.locator("[data-field=sku]").get_by_label("=A0").check()
        expect(search.cards).to_have_count(2)
        expect(page.locator("[data-field=size]")).to_have_count(0)  # of a tar file, not of an image
        search.cards.first.locator(".open").click()
        expect(page.locator("#fields")).to_contain_text("=A0")
        page.keyboard.press("x")
        page.keyboard.press("Escape")
        with page.expect_download() as download:
            page.locator("#as-csv").click()
        (row,) = csv.DictReader(download.value.path().read_text().splitlines())
        assert row["sku"] == "'=A0" and float(row["price"]) in (20, 40)
        page.close()
