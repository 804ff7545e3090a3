"""Grids draw every text with a font that has its characters, or log those that no font has."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from dualfuse.data.image import image_grid as module
from dualfuse.data.image.image_grid import Tile, image_grid, save_drawing
from dualfuse.errors import DualfuseError

PIXELS = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def dejavu() -> str:
    """The font that matplotlib ships: it has Cyrillic, but no Chinese."""
    matplotlib = pytest.importorskip("matplotlib")
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def fonts_of(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return module._font_for(text, 192)


def test_font_with_the_characters_is_chosen(dejavu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FONTS", (dejavu,))
    module._installed.cache_clear()
    assert fonts_of("кот").getname()[0] == "DejaVu Sans"
    monkeypatch.setattr(module, "FONTS", ())
    module._installed.cache_clear()
    assert fonts_of("cat").getname()[0] != "DejaVu Sans"
    monkeypatch.setenv("DUALFUSE_FONT", dejavu)
    assert fonts_of("cat").getname()[0] == "DejaVu Sans"
    monkeypatch.setenv("DUALFUSE_FONT", "no-such-font.ttf")
    with pytest.raises(DualfuseError, match=r"DUALFUSE_FONT is no-such-font.ttf"):
        fonts_of("cat")
    module._installed.cache_clear()


def test_missing_characters_are_logged_once(
    dejavu: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FONTS", ())
    monkeypatch.setenv("DUALFUSE_FONT", dejavu)
    with caplog.at_level(logging.WARNING, "dualfuse"):
        image_grid([Tile(PIXELS, "a café кот \u200d"), Tile(PIXELS, "b")], heading="c")
        assert not caplog.messages
        image_grid([Tile(PIXELS, "猫 and 犬"), Tile(PIXELS, "b", title="猫")], heading="c")
    (message,) = caplog.messages
    assert "2 characters: 犬猫;" in message and "DUALFUSE_FONT" in message


def test_control_characters_are_drawn_as_escapes() -> None:
    drawn, escaped = (image_grid([Tile(PIXELS, text)]) for text in ("a\x1b\ud800", "a\\x1b\\ud800"))
    assert drawn.tobytes() == escaped.tobytes()


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("new/a.JPG", "JPEG"), ("a.jpeg", "JPEG")])
def test_drawing_is_saved_in_the_format_of_its_name(tmp_path: Path, name: str, kind: str) -> None:
    save_drawing(image_grid([Tile(PIXELS, "a")]), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.format == kind
