"""Every file called .tar gives samples or a DualfuseError."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from damaged import damaged, told
from hypothesis import given
from hypothesis import strategies as st
from tiny import png_image

from dualfuse.data.sample import BrokenSample
from dualfuse.data.shards.shards import Shards
from dualfuse.prepare.sources.pairs import webdataset

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
KINDS = b"0012345678gxLKSXNMV\0"


def complete_tar(form: int) -> bytes:
    """Return a tar in a format with all kinds of members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        long = "folder/" * (12 if form == tarfile.USTAR_FORMAT else 30)
        for name, data in ((f"{long}a.png", png_image(1, 8)), (f"{long}a.txt", b"a cat"), ("b.json", b'{"text": "x"}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("b.png")
            info.type, info.linkname = kind, f"{long}a.png"
            tar.addfile(info)
    return file.getvalue()


def with_sums(data: bytes) -> bytes:
    """Correct the checksum of every block that looks like a header."""
    blocks = [bytearray(data[place : place + 512]) for place in range(0, len(data), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    return b"".join(blocks)


def fields() -> st.SearchStrategy[bytes]:
    """Generate a header with arbitrary fields, followed by some data."""
    number = st.one_of(st.binary(min_size=12, max_size=12), st.integers(0, 2000).map(lambda n: b"%011o\0" % n))
    head = st.tuples(
        st.sampled_from((b"a.png", b"a.txt", b"b.1.jpg", b"../x.png", b"././@LongLink", b"\xff.png"))
        | st.binary(max_size=100),
        number,
        st.sampled_from([bytes([kind]) for kind in KINDS]),
        st.binary(max_size=100),
        st.sampled_from((b"ustar\x0000", b"ustar  \0")),
        st.binary(max_size=249),
        st.sampled_from((b"", b"22 GNU.sparse.size=9\n", b"14 size=99999\n", b"x" * 600)) | st.binary(max_size=90),
    )
    return head.map(_block)


def _block(parts: tuple[bytes, ...]) -> bytes:
    name, size, kind, link, magic, rest, data = parts
    head = (
        name.ljust(100, b"\0") + b"0000644\0" * 3 + size + b"0" * 11 + b"\0" + b" " * 8 + kind + link.ljust(100, b"\0")
    )
    return (head + magic + rest.ljust(247, b"\0"))[:512].ljust(512, b"\0") + data.ljust(
        -(-len(data) // 512) * 512, b"\0"
    )


CONTENT = st.one_of(
    *(damaged(complete_tar(form)).map(with_sums) for form in FORMATS),
    *(damaged(complete_tar(form)) for form in FORMATS),
    st.lists(fields(), min_size=1, max_size=5).map(lambda blocks: with_sums(b"".join(blocks)) + bytes(1024)),
    st.binary(max_size=1200),
)


@given(content=CONTENT)
def test_shards(folder: Path, content: bytes) -> None:
    path = folder / "s.tar"
    path.write_bytes(content)
    path.with_name("s.tar.index.npz").unlink(missing_ok=True)
    shards = told(lambda: Shards.open(path))
    for number in range(len(shards or ())):
        try:
            assert len(shards[number].image) <= len(content)
        except BrokenSample as error:
            assert error.key == shards.key(number)


@given(data=st.data())
def test_a_damaged_index_is_replaced(folder: Path, data: st.DataObject) -> None:
    """The samples are the same in any case."""
    path, good = folder / "s.tar", folder / "good.npz"
    kept = path.with_name("s.tar.index.npz")
    if not path.exists():
        path.write_bytes(complete_tar(FORMATS[1]))
        Shards.open(path)
        good.write_bytes(kept.read_bytes())
    kept.write_bytes(data.draw(damaged(good.read_bytes())))
    shards = Shards.open(path)
    assert [shards.key(number) for number in range(len(shards))] == ["s/" + "folder/" * 30 + "a", "s/b"]
    assert shards[0].texts == ("a cat",) and shards[1].texts == ("x",)


@given(content=CONTENT)
def test_prepare(folder: Path, content: bytes) -> None:
    path = folder / "p.tar"
    path.write_bytes(content)
    for item in told(lambda: list(webdataset.load(path).items)) or ():
        assert item.image == b"" or len(item.image.read()) <= len(content)  # type: ignore[union-attr]
