"""Which images a shard holds already: a further question about one of them only links to it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from hashlib import blake2b
from io import BufferedRandom

from dualfuse.data.sample import Sample


class Stored:
    """The images of one shard, by what their source calls them ("name" of the meta) and what they hold.

    Images that are equal and called otherwise are stored again, so that tars of captions hold no links, which not
    every program follows; and so are those whose source gives them no name.
    """

    def __init__(self) -> None:
        """Nothing is stored yet."""
        self._members: dict[tuple[str, bytes], str] = {}

    @classmethod
    def of(cls, shard: BufferedRandom) -> Stored:
        """Read what an unfinished shard holds, from the beginning of the file to its end."""
        stored, images = cls(), dict[str, bytes]()
        shard.seek(0)
        with tarfile.open(fileobj=shard, mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member)
                data = content.read() if content and not member.islnk() else b""
                if member.name.endswith(".json"):  # the last of a sample's members
                    stored._keep(images, json.loads(data))
                    images = {}
                elif data and not member.name.endswith(".txt"):
                    images[member.name] = data
        return stored

    def member(self, sample: Sample, name: str, data: bytes) -> str:
        """Return the name of the member that holds an image of the sample; ``name`` itself where it is a new one."""
        found = self._members.get(_key(sample.meta, data), name)
        self._keep({name: data}, sample.meta)
        return found

    def _keep(self, images: Mapping[str, bytes], meta: Mapping[str, object]) -> None:
        if "name" in meta:
            for name, data in images.items():
                self._members.setdefault(_key(meta, data), name)


def _key(meta: Mapping[str, object], data: bytes) -> tuple[str, bytes]:
    return str(meta.get("name")), blake2b(data, digest_size=16).digest()
