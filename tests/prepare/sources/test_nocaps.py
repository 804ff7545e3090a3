"""NoCaps as published: captions of the validation set by image, domains, and a test set without captions."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import png_image

from dualfuse.data.shards.shards import Shards
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare

ONE = PrepareOptions(num_workers=1)


def entry(number: int, name: str, domain: str) -> dict[str, object]:
    return {"id": number, "open_images_id": name, "file_name": f"{name}.jpg", "domain": domain, "coco_url": "x"}


def test_both_files(tmp_path: Path) -> None:
    val = {
        "images": [entry(0, "09c863d76bcf6b00", "near-domain"), entry(1, "ff", "out-domain"), {"id": 3}],
        "annotations": [{"image_id": 0, "id": n, "caption": f"a cat {n}"} for n in range(10)]
        + [{"image_id": 1, "id": 20, "caption": "a dog"}, {"image_id": 8, "id": 21, "caption": "lost"}],
    }
    test = {"images": [{name: value for name, value in entry(7, "aa", "").items() if name != "domain"}]}
    (tmp_path / "nocaps_val_4500_captions.json").write_text(json.dumps(val))
    (tmp_path / "nocaps_test_image_info.json").write_text(json.dumps(test))
    for name in ("val/09c863d76bcf6b00.jpg", "val/ff.jpg", "test/aa.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png_image(len(name)))
    summary = prepare(tmp_path, tmp_path / "out", ONE)
    first, second = Shards.open(tmp_path / "out" / "val-*.tar")[:]
    [unlabelled] = Shards.open(tmp_path / "out" / "test-*.tar")[:]
    assert first.texts == tuple(f"a cat {n}" for n in range(10))
    assert (first.meta["image_id"], first.meta["domain"]) == (0, "near-domain")
    assert (second.texts, unlabelled.texts, unlabelled.meta["image_id"]) == (("a dog",), (), 7)
    assert summary.tally.skipped == {"incomplete entry": 1, "caption of an image that is not in the file": 1}
    prepare(tmp_path / "nocaps_val_4500_captions.json", tmp_path / "one", ONE)
    assert len(Shards.open(tmp_path / "one" / "val-*.tar")) == 2
