"""Karpathy's retrieval splits: ``dataset_coco.json``, ``dataset_flickr30k.json``, ``dataset_flickr8k.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dualfuse.data.split import split_name
from dualfuse.io import MAX_TABLE, read_json
from dualfuse.prepare.sources.image_finder import FLICKR, ImageFinder, around
from dualfuse.prepare.sources.source import Item


def read(path: Path, images: Path | None) -> Iterator[Item]:
    """Yield every image of the file at ``path`` with all its sentences, in file order.

    ``images`` is the folder with ``val2014/COCO_val2014_000000391895.jpg`` or ``1000092795.jpg``; by default, images
    are searched around the file, also in folders such as ``flickr30k-images``. ``restval`` joins ``train``, as in the
    published recipes.
    """
    find = ImageFinder(*((images,) if images else around(path.parent, *FLICKR)))
    for entry in read_json(path, MAX_TABLE)["images"]:
        name = f"{entry['filepath']}/{entry['filename']}" if entry.get("filepath") else entry["filename"]
        yield Item(
            name=name,
            image=find(name),
            texts=tuple(sentence["raw"] for sentence in entry["sentences"]),
            split=split_name(entry["split"]),
            meta={key: entry[key] for key in ("cocoid", "imgid", "sentids") if key in entry}
            | {"split": entry["split"]},
        )
