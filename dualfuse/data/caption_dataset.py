"""A set sampled by caption: each caption is one item, with its image."""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.map_dataset import MapDataset
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError


class CaptionDataset(MapDataset):
    """The captions of the samples of a set, in file order: samples with one text each.

    An image with five captions is five samples, an image without captions is none. The official code of VLMo, METER and
    BridgeTower samples pairs in this way. Key: that of the image, with the number of the caption: "TAR/KEY#2".
    """

    def __init__(self, samples: MapDataset) -> None:
        """Count the captions of ``samples``, unless that was done before; DualfuseError if there are none."""
        counts = samples.caption_counts()
        if not counts.any():
            raise DualfuseError(
                f"data.sample_by is 'caption', but none of {len(counts):,} samples has a caption; set it to 'image'"
            )
        super().__init__(counts)
        self.samples = samples
        self.without_caption = int((counts == 0).sum())

    def key(self, index: int) -> str:
        """Return the unique key of a caption without reading it."""
        sample, number = self.locate(index)
        return f"{self.samples.key(sample)}#{number}"

    def digests(self) -> dict[str, str]:
        """Return a digest of the contents of each file."""
        return self.samples.digests()

    def following(self, index: int) -> int:
        """Return the first caption of the next image: a broken image breaks all its captions."""
        return int(self._starts[self.locate(index)[0] + 1]) % len(self)

    def read(self, file: int, number: int, key: str) -> Sample:
        """Read caption ``number`` of sample ``file``, with its image."""
        sample = self.samples[file]
        if number >= len(sample.texts):
            raise BrokenSample(key, f"it has {len(sample.texts)} texts, but its index counts more")
        return replace(sample, key=key, texts=(sample.texts[number],))
