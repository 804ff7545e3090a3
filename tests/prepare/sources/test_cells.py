"""Images and texts in cells, as people and programs store them."""

from __future__ import annotations

import base64

import pytest

from dualfuse.data.text.captions import captions_of
from dualfuse.errors import DualfuseError
from dualfuse.prepare.sources.cells import cell_image, cell_texts
from dualfuse.prepare.sources.label_names import parse_label

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        (" a cat ", ("a cat",)),
        ("", ()),
        (None, ()),
        (float("nan"), ()),
        (7, ("7",)),
        (7.0, ("7",)),
        (7.5, ("7.5",)),
        (["a", None, 3, " "], ("a", "3")),
        ('["a cat", "caf\\u00e9 \\ud83d\\ude00"]', ("a cat", "café 😀")),
        ("['a cat', \"a dog's\"]", ("a cat", "a dog's")),
        ("['a cat' 'a dog'\n 'a cow']", ("a cat", "a dog", "a cow")),
        ("['a', nan, None]", ("a",)),
        ("('a cat', 'a dog')", ("a cat", "a dog")),
        ("[]", ()),
        ("[OC] my cat", ("[OC] my cat",)),
        ("[OC]", ("[OC]",)),
        ("[7]", ("[7]",)),
        ("('a cat')", ("('a cat')",)),
        ("[my cat] and [yours]", ("[my cat] and [yours]",)),
    ],
)
def test_texts_of_a_cell(cell: object, texts: tuple[str, ...]) -> None:
    assert cell_texts(cell) == texts


@pytest.mark.parametrize("cell", [{"a": 1}, True, [b"a"]])
def test_texts_of_other_types_are_refused(cell: object) -> None:
    with pytest.raises(DualfuseError, match="a caption is a"):
        cell_texts(cell)


def test_captions_of_a_json_object() -> None:
    assert captions_of({"captions": "a", "text": "b"}) == ("a",)
    assert captions_of({"captions": [], "caption": ["a", "b"]}) == ("a", "b")
    assert captions_of({"caption": " ", "text": 7}) == ("7",) and not captions_of({"title": "a"})


@pytest.mark.parametrize("image", [IMAGE, b"\xff\xd8\xff" + IMAGE, b"no image" * 1000])
def test_images_in_cells(image: bytes) -> None:
    text = base64.b64encode(image).decode()
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    for cell in (
        image,
        text,
        lines,
        text.rstrip("="),
        f"data:image/png;base64,{text}",
        {"bytes": image, "path": "a.png"},
    ):
        assert cell_image(cell) == image
    assert cell_image({"bytes": text}) == image and cell_image(base64.urlsafe_b64encode(image).decode()) == image


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (" a b.png ", "a b.png"),
        ({"bytes": None, "path": "a.png"}, "a.png"),
        ({"bytes": b"", "path": "a.png"}, "a.png"),
        (7, "7"),
        (7.0, "7"),
        (float("nan"), ""),
        ("file:///tmp/my%20cat.png", "/tmp/my cat.png"),
    ],
)
def test_names_of_images_in_cells(cell: object, name: str) -> None:
    assert cell_image(cell) == name


@pytest.mark.parametrize(
    "cell", ["https://a.b/c.png", "s3://a/b.png", "x y" * 9000, {"url": 1}, ["a.png"], "data:image/png;base64,*"]
)
def test_other_images_are_refused_with_a_short_message(cell: object) -> None:
    with pytest.raises(DualfuseError) as caught:
        cell_image(cell)
    assert len(str(caught.value)) < 300


def test_list_of_answers_as_pandas_writes_it() -> None:
    assert parse_label("['yes', 'no']") == {"answers": ["yes", "no"]} and parse_label("[x]") == {"label": "[x]"}
