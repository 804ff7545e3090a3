"""A grid of images with their captions, as one image."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dualfuse.data.image.decode import decode, decoding
from dualfuse.errors import DualfuseError
from dualfuse.io import atomic_write
from dualfuse.printable import printable

MARGIN = 8
MAX_LINES = 4  # of a caption; longer ones end in an ellipsis
CHARACTERS = 5000  # different ones of a grid that are looked up in fonts
LACKING = 40  # characters that a message names
INK, FAINT, RED, PAPER, EMPTY = "#1a1a1a", "#707070", "#c62828", "white", "#eeeeee"
FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansCJKjp-Regular.otf", "NotoSansSC-Regular.otf",
    "SourceHanSans-Regular.ttc", "SourceHanSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "uming.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc",
    "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Arial Unicode.ttf", "NotoSans-Regular.ttf", "DejaVuSans.ttf",
    "Arial.ttf", "arial.ttf",
)  # fmt: skip
"""Files of system fonts, those with Chinese, Japanese and Korean first."""
FONT = "DUALFUSE_FONT"
"""Environment variable with the path or the file name of a font that is preferred to ``FONTS``."""
UNASSIGNED = "\U0010ffff"  # drawn as any character that a font lacks

logger = logging.getLogger(__name__)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Tile(NamedTuple):
    """One cell of a grid: an image (a file's bytes, or pixels (H, W, 3)) and the text below it."""

    image: bytes | np.ndarray
    caption: str
    title: str = ""
    """A gray line above the caption, such as a key."""
    note: str = ""
    """A line below the caption, such as a score or an error."""
    is_marked: bool = False
    """Whether the frame and the note are red."""


def image_grid(
    tiles: Sequence[Tile | tuple[bytes | np.ndarray, str]], columns: int = 6, cell: int = 192, heading: str = ""
) -> Image.Image:
    """Return a grid of ``tiles``, each ``cell`` pixels wide, with ``columns`` columns, below a ``heading``.

    An image that cannot be decoded is shown as a gray field with the text "no image". Logs a warning with the
    characters that the font lacks; the environment variable DUALFUSE_FONT names a better one.
    """
    if not tiles or columns < 1:
        raise DualfuseError(f"a grid needs images and columns; there are {len(tiles)} images and {columns} columns")
    cells = [_shown(tile if isinstance(tile, Tile) else Tile(tile[0], tile[1])) for tile in tiles]
    heading = printable(heading)
    font = _font_for("".join([heading, *("".join((tile.title, tile.caption, tile.note)) for tile in cells)]), cell)
    drawn = [_draw(tile, cell, font) for tile in cells]
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    top = 3 * MARGIN + _line_height(font) if heading else MARGIN
    width = MARGIN + min(columns, len(drawn)) * (cell + MARGIN)
    grid = Image.new("RGB", (width, top + sum(heights) + MARGIN * len(rows)), PAPER)
    ImageDraw.Draw(grid).text((MARGIN, MARGIN), _shorten(heading, width - 2 * MARGIN, font), INK, font)
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            grid.paste(tile, (MARGIN + column * (cell + MARGIN), top))
        top += height + MARGIN
    return grid


def save_drawing(image: Image.Image, path: Path) -> None:
    """Write an image to ``path`` atomically, as PNG or, by any other suffix than .png, as JPEG."""
    with atomic_write(path) as partial:
        image.save(partial, "PNG" if path.suffix.lower() == ".png" else "JPEG")


def _shown(tile: Tile) -> Tile:
    """Return a tile with texts that can be drawn; newlines remain."""
    title, caption, note = (printable(text, "\n") for text in (tile.title, tile.caption, tile.note))
    return tile._replace(title=title, caption=caption, note=note)


def below(top: Image.Image, bottom: Image.Image) -> Image.Image:
    """Return two images of one width, the second below the first."""
    combined = Image.new("RGB", (top.width, top.height + bottom.height), PAPER)
    combined.paste(top, (0, 0))
    combined.paste(bottom, (0, top.height))
    return combined


def _draw(tile: Tile, cell: int, font: Font) -> Image.Image:
    """Return one drawn tile: image, title, caption, note."""
    lines = [(_shorten(tile.title, cell, font), FAINT)] if tile.title else []
    lines += [(line, INK) for line in wrap(tile.caption, cell, font)]
    lines += [(line, RED if tile.is_marked else FAINT) for line in wrap(tile.note, cell, font)]
    step = _line_height(font)
    drawn = Image.new("RGB", (cell, cell + MARGIN // 2 + step * len(lines)), PAPER)
    draw = ImageDraw.Draw(drawn)
    image = _image(tile.image, cell)
    if image is None:
        draw.rectangle((0, 0, cell - 1, cell - 1), fill=EMPTY)
        draw.text((cell // 2, cell // 2), "no image", FAINT, font, anchor="mm")
    else:
        drawn.paste(image, ((cell - image.width) // 2, (cell - image.height) // 2))
    if tile.is_marked:
        draw.rectangle((0, 0, cell - 1, cell - 1), outline=RED, width=3)
    for number, (line, ink) in enumerate(lines):
        draw.text((0, cell + MARGIN // 2 + step * number), line, ink, font)
    return drawn


@decoding()
def _image(pil_image: bytes | np.ndarray, cell: int) -> Image.Image | None:
    """Return an image resized to fit into a cell; None if it cannot be decoded."""
    try:
        pixels = decode(pil_image).permute(1, 2, 0).numpy() if isinstance(pil_image, bytes) else pil_image
    except ValueError:
        return None
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = cell / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def wrap(text: str, width: int, font: Font, max_lines: int = MAX_LINES) -> list[str]:
    """Return lines of at most ``width`` pixels, broken at spaces; the last of ``max_lines`` may be shortened."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < max_lines - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        lines.append(_shorten(" ".join(words[:count]), width, font))
        words = words[count:]
    return [*lines, _shorten(" ".join(words), width, font)] if words else lines


def _shorten(text: str, width: int, font: Font) -> str:
    """Return ``text``, shortened with an ellipsis if it exceeds ``width`` pixels."""
    if font.getlength(text[:1000]) <= width and len(text) <= 1000:
        return text
    kept = text[: 4 * width]
    while kept and font.getlength(kept + "…") > width:
        kept = kept[: min(len(kept) - 1, int(len(kept) * width / font.getlength(kept + "…")) + 1)]
    return kept.rstrip() + "…"


def _font_for(text: str, cell: int) -> Font:
    """Return the installed font that lacks fewest characters of ``text``, for cells of ``cell`` pixels."""
    size = max(10, cell // 15)
    fonts = [ImageFont.truetype(path, size) for path in _installed(os.environ.get(FONT, ""))]
    characters = sorted({each for each in text if each.isprintable() and not each.isspace()})[:CHARACTERS]
    font = min([*fonts, ImageFont.load_default(size)], key=lambda font: len(_lacking(font, characters)))
    if lacking := _lacking(font, characters):
        logger.warning(
            "the font of the grid lacks %d characters: %s; install a font that has them, such as Noto Sans CJK, or "
            "give its file in the environment variable %s",
            len(lacking), "".join(lacking[:LACKING]), FONT,
        )  # fmt: skip
    return font


@cache
def _installed(preferred: str) -> tuple[str, ...]:
    """Return the names of the installed fonts among ``FONTS``, after the ``preferred`` one (empty: none)."""
    installed: list[str] = []
    for name in filter(None, (preferred, *FONTS)):
        try:
            ImageFont.truetype(name, 10)
            installed.append(name)
        except OSError as error:
            if name == preferred:
                raise DualfuseError(f"{FONT} is {preferred}, which is not a font that can be read") from error
    return tuple(installed)


def _lacking(font: Font, characters: Sequence[str]) -> list[str]:
    """Return the ``characters`` that a font draws as an unassigned one."""
    missing = _glyph(font, UNASSIGNED)
    return [each for each in characters if _glyph(font, each) == missing]


def _glyph(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    *_, right, bottom = font.getbbox(character)
    drawn = Image.new("L", (max(1, round(right)), max(1, round(bottom))))
    ImageDraw.Draw(drawn).text((0, 0), character, 255, font)
    return drawn.size, drawn.tobytes()


def _line_height(font: Font) -> int:
    return round(font.getbbox("Ägjy")[3] * 1.25)
