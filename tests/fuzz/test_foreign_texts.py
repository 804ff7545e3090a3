"""Every text file gives rows or a DualfuseError, and every image pixels or one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow
import pytest
from damaged import damaged, told, values
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from tiny import png_image, tokenizer

from dualfuse.data.image.decode import decode
from dualfuse.data.image.image_file import convert_image
from dualfuse.data.sample import BrokenSample
from dualfuse.data.text.corpus import Corpus
from dualfuse.data.text.tokenizer import TextTransform

LINES = [{"text": "The red cat runs. It sleeps.\nA dog"}, {"text": "\ufeffhouse \u4e2d\u6587"}]


def columns() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(LINES), file, row_group_size=1)
    return file.getvalue()


FILES = {
    "t.txt": "\n\n".join(line["text"] for line in LINES).encode(),
    "t.jsonl": "\n".join(map(json.dumps, LINES)).encode(),
    "t.parquet": columns(),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTransform:
    return TextTransform(8, tokenizer(tmp_path_factory.mktemp("words")))


def read(path: Path, text: TextTransform) -> None:
    for kept in path.parent.glob("*.npy"):
        kept.unlink()
    corpus = Corpus.open(path, text)
    for number in range(len(corpus)):
        try:
            (line,) = corpus[number].texts
            assert not text.encode(line).truncated
        except BrokenSample as error:
            assert error.key == corpus.key(number)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_damaged_texts(name: str, folder: Path, text: TextTransform, data: st.DataObject) -> None:
    path = folder / name
    path.write_bytes(data.draw(damaged(FILES[name])))
    told(lambda: read(path, text))


@given(rows=st.lists(values(("text",)), max_size=5))
def test_lines_of_other_values(rows: list[object], folder: Path, text: TextTransform) -> None:
    path = folder / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    told(lambda: read(path, text))


@given(content=st.text(max_size=300) | st.binary(max_size=300))
def test_any_text(content: str | bytes, folder: Path, text: TextTransform) -> None:
    path = folder / "t.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    told(lambda: read(path, text))


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(png_image(3, 16))).convert("RGB").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
def test_damaged_images(kind: str, data: st.DataObject) -> None:
    content = data.draw(damaged(encoded(kind)))
    image = told(lambda: decode(content))
    assert image is None or (image.ndim == 3 and image.shape[0] == 3)
    told(lambda: convert_image(content))
