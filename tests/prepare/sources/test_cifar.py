"""CIFAR's four published layouts: pixels, labels and splits, and files that are something else."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.sources.labels.cifar import read_batch

ONE = PrepareOptions(num_workers=1)
NAMES = ["cat", "ship", "sea lion"]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
LABELS = [2, 0, 1]
KINDS = ("cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python")


def text(value: bytes) -> bytes:
    """A string of Python 2."""
    return b"T" + struct.pack("<i", len(value)) + value


def array(values: np.ndarray, dtype: bytes = b"u1") -> bytes:
    """An array of numpy 1, as Python 2 pickled it: _reconstruct(ndarray, (0,), 'b'), and its state."""
    shape = b"(" + b"".join(b"J" + struct.pack("<i", side) for side in values.shape) + b"t"
    kind = (
        b"cnumpy\ndtype\n("
        + text(dtype)
        + b"K\x00K\x01tR(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    return made + b"(K\x01" + shape + kind + b"I00\n" + text(values.tobytes()) + b"tb"


def numbers(values: list[int]) -> bytes:
    return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"


def python2(**values: bytes) -> bytes:
    items = b"".join(text(name.encode()) + value for name, value in values.items())
    return b"\x80\x02}(" + items + b"u."


def strings(values: list[str]) -> bytes:
    return b"](" + b"".join(text(value.encode()) for value in values) + b"e"


def files(kind: str, part: slice) -> dict[str, bytes]:
    """The files of one version: three images in the first file, and those of ``part`` in each other one."""
    flat = PIXELS.reshape(3, -1)
    if kind == "cifar-10-batches-bin":
        rows = np.hstack([np.array(LABELS, np.uint8)[:, None], flat])
        names = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
        return {name: rows[slice(None) if n == 0 else part].tobytes() for n, name in enumerate(names)} | {
            "batches.meta.txt": "\n".join([*NAMES, ""]).encode()
        }
    if kind == "cifar-100-binary":
        rows = np.hstack([np.array([[9, label] for label in LABELS], np.uint8), flat])
        names = "\n".join(NAMES).encode()
        return {"train.bin": rows.tobytes(), "test.bin": rows[part].tobytes(), "fine_label_names.txt": names}
    if kind == "cifar-10-batches-py":
        names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
        parts = [slice(None) if n == 0 else part for n in range(6)]
        batches = {
            name: python2(data=array(flat[chosen]), labels=numbers(LABELS[chosen]), batch_label=text(b"x"))
            for name, chosen in zip(names, parts, strict=True)
        }
        return batches | {"batches.meta": python2(label_names=strings(NAMES))}
    return {
        "train": python2(data=array(flat), fine_labels=numbers(LABELS), coarse_labels=numbers([0, 0, 0])),
        "test": python2(data=array(flat[part]), fine_labels=numbers(LABELS[part])),
        "meta": python2(fine_label_names=strings(NAMES), coarse_label_names=strings(["x"])),
    }


def write(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_published_layouts(kind: str, tmp_path: Path) -> None:
    source = write(tmp_path / kind, files(kind, slice(1, 2)))
    summary = prepare(source, tmp_path / "out", ONE)
    train, test = (Shards.open(tmp_path / "out" / f"{split}-*.tar") for split in ("train", "test"))
    assert (len(train), len(test), sum(summary.tally.skipped.values())) == (3 if "100" in kind else 7, 1, 0)
    assert [train[n].meta["label"] for n in range(3)] == [NAMES[label] for label in LABELS]
    for n in range(3):
        with Image.open(io.BytesIO(train[n].image)) as image:
            assert (np.asarray(image).transpose(2, 0, 1) == PIXELS[n]).all()
    assert test[0].meta["label"] == "cat"
    assert (tmp_path / "out" / "labels.txt").read_text() == "cat\nship\nsea lion\n"


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_pickles_are_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = files("cifar-100-python", slice(1))
    content["train"] = pickle.dumps({"data": Attack()}, protocol=2)
    with pytest.raises(DualfuseError, match=r"train is not a file of CIFAR: it names .*print"):
        prepare(write(tmp_path / "in", content), tmp_path / "out", ONE)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (python2(data=array(np.zeros((1, 3), "<f4"), b"f4")), "array that is not of bytes"),
        (b"\x80\x02].", "holds a list"),
        (b"\x80\x02}(U", "cifar|file"),
    ],
)
def test_other_pickles_are_named(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_batch(tmp_path / "train")


def test_incomplete_binary_file(tmp_path: Path) -> None:
    content = files("cifar-100-binary", slice(1))
    content["train.bin"] = content["train.bin"][:-1]
    with pytest.raises(DualfuseError, match=r"train.bin has 9,221 bytes, not 3,074 for each image"):
        prepare(write(tmp_path / "in", content), tmp_path / "out", ONE)
