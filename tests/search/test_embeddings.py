"""Files of embeddings: formats, names and columns, skipped images, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from numpy.testing import assert_allclose
from tiny import clip_recipe, png_image

import dualfuse
from dualfuse import hub
from dualfuse.cli.main import main
from dualfuse.errors import DualfuseError
from dualfuse.search import embeddings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    recipe = clip_recipe(folder)
    return str(hub.save(folder / "final", recipe.build(), recipe))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(5):
        (folder / f"{seed}.png").write_bytes(png_image(seed))
    (folder / "3.png").write_bytes(b"broken")
    return folder


def expected(model: str, photos: Path, names: list[str]) -> np.ndarray:
    return dualfuse.load(model).encode_image([photos / name for name in names])


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".jsonl"])
def test_embed_writes_names_and_embeddings(suffix: str, model: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / f"out{suffix}"
    assert main(["embed", model, str(photos), "--out", str(out)]) == 0
    if suffix == ".parquet":
        rows = pyarrow.parquet.read_table(out).to_pylist()
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        rows = [json.loads(line) for line in (tmp_path / "out.names.jsonl").read_text().splitlines()]
    names = [row["name"] for row in rows]
    assert names == ["0.png", "1.png", "2.png", "4.png"]
    values = np.load(out) if suffix == ".npy" else np.array([row["embedding"] for row in rows], dtype=np.float32)
    assert values.dtype == np.float32
    assert_allclose(values, expected(model, photos, names), atol=1e-6)
    (skipped,) = (json.loads(line) for line in (tmp_path / f"out{suffix}.skipped.jsonl").read_text().splitlines())
    assert skipped["name"] == "3.png" and not (tmp_path / f"out{suffix}.parts").exists()
    assert main(["embed", model, str(photos), "--out", str(out)]) == 2  # it exists


def test_columns_of_a_table_are_kept(model: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text(
        "image,sku,price\nphotos/0.png,a-1,3\nphotos/none.png,a-2,4\nphotos/2.png,a-3,5\n"
    )
    command = ["embed", model, str(tmp_path / "shop.csv"), "--keep", "sku", "--out", str(tmp_path / "out.jsonl")]
    assert main(command) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["sku"] for row in rows] == ["a-1", "a-3"]
    assert_allclose(
        np.array([row["embedding"] for row in rows]), expected(model, photos, ["0.png", "2.png"]), atol=1e-6
    )


def test_texts_are_embedded(model: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat\n\nthe red dog\n")
    command = ["embed", model, "--texts", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "out.npy")]
    assert main(command) == 0
    assert_allclose(
        np.load(tmp_path / "out.npy"), dualfuse.load(model).encode_text(["a cat", "the red dog"]), atol=1e-6
    )


def test_an_interrupted_run_resumes(model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PART_SIZE", 2)
    loaded, out, calls = dualfuse.load(model), tmp_path / "out.jsonl", list[int]()
    part = embeddings.embed_part

    def interrupted(*arguments) -> embeddings.Part:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return part(*arguments)

    monkeypatch.setattr(embeddings, "embed_part", interrupted)

    def write(source: str) -> embeddings.EmbeddedFile:
        entries, total = embeddings.image_entries(str(photos))
        return embeddings.write_embeddings(loaded, entries, out, total=total, source=source)

    with pytest.raises(KeyboardInterrupt):
        write("a")
    assert not out.exists()
    result = write("a")
    assert (result.count, result.resumed, len(calls)) == (4, 2, 4)
    out.unlink()
    calls[:] = [1, 1]
    assert write("b").resumed == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give IMAGES, or --texts FILE"),
        (["photos"], "--out embeddings.parquet"),
        (["photos", "--out", "x.txt"], "should end in .parquet, .npy, .jsonl"),
        (["photos", "--keep", "sku", "--out", "x.npy"], "are for a table"),
    ],
)
def test_contradicting_options_are_refused(
    words: list[str], message: str, model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(photos) if word == "photos" else word for word in words]
    assert main(["embed", model, *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_nothing_to_embed_is_an_error(model: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"broken")
    entries, total = embeddings.image_entries(str(tmp_path / "photos"))
    with pytest.raises(DualfuseError, match="none of the 1 inputs can be embedded; the first: a"):
        embeddings.write_embeddings(dualfuse.load(model), entries, tmp_path / "o.npy", total=total, source="")
