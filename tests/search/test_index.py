"""An index returns what a loop over single images would, and never embeds an image twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from toy_store import ToyStore

from dualfuse import hub
from dualfuse.cli import search as search_command
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.printable import printable
from dualfuse.recipe import Data, Recipe
from dualfuse.search import index as index_module
from dualfuse.search.index import Index, fingerprint
from dualfuse.search.stores.exact import ExactStore
from dualfuse.tasks.pretrain.pairs import PairsConfig

MODEL = VLMoConfig(
    width=32,
    depth=2,
    heads=2,
    vl_expert_start=1,
    patch_size=8,
    image_size=(16, 16),
    text_length=16,
    positions="absolute",
    drop_path=0.0,
)
RECIPE = Recipe("tiny", MODEL, PairsConfig(), Data(image_size=(16, 16), text_length=16))
NAMES = tuple(sorted([f"{number:02}.png" for number in range(9)] + ["deep/er/a.jpg", "deep/b.WEBP", "ü [1].bmp"]))
TEXT = "a dog in the snow"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that differ in one small tensor only: the projection of images."""
    torch.manual_seed(1)
    task = RECIPE.task.build(MODEL.build())
    for weight in task.parameters():  # random weights of 0.02 tell hardly anything apart
        weight.data += 0.2 * torch.randn_like(weight)
    one = hub.save(tmp_path_factory.mktemp("one") / "model", task, RECIPE)
    task.itc_heads[0].image.weight.data.neg_()
    return one, hub.save(tmp_path_factory.mktemp("other") / "model", task, RECIPE)


@pytest.fixture
def loaded(folders: tuple[Path, Path]) -> LoadedModel:
    return hub.load(folders[0])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number, name in enumerate(NAMES):
        paint(folder / name, number)
    (folder / ".hidden").mkdir()
    paint(folder / ".hidden" / "no.png", 99)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((32, 24)).save(path)


@pytest.fixture
def count(loaded: LoadedModel) -> Iterator[Callable[[], int]]:
    """Return a function that returns the number of images that the model has embedded since its last call."""
    sizes: list[int] = []
    embed_image = loaded.task.model.embed_image

    def counting(images: torch.Tensor, slot: int = 0):
        sizes.append(len(images))
        return embed_image(images, slot)

    def count_and_reset() -> int:
        total = sum(sizes)
        sizes.clear()
        return total

    loaded.task.model.embed_image = counting
    yield count_and_reset


@torch.no_grad()
def naive(loaded: LoadedModel, images: Path, names: tuple[str, ...]) -> tuple[dict[str, float], dict[str, float]]:
    """Cosine and log-odds of TEXT with each image, one by one."""
    task, rng = loaded.task, np.random.default_rng(0)
    ids = torch.tensor([list(loaded.processor.text.encode(TEXT).ids)])
    text = task.model.embed_text(ids, torch.ones(ids.shape))
    cosine, match = {}, {}
    for name in names:
        image = task.model.embed_image(loaded.processor.image((images / name).read_bytes(), rng)[None])
        one, other = (
            task.itc_heads[0].image(task.model.encode(image)),
            task.itc_heads[0].text(task.model.encode(text)),
        )
        cosine[name] = torch.nn.functional.cosine_similarity(one, other).item()
        no, yes = task.itm_head(task.model.fuse(image, text).pooled)[0].tolist()
        match[name] = yes - no
    return cosine, match


def test_hits_equal_single_comparisons(loaded: LoadedModel, images: Path) -> None:
    hits = Index.build(loaded, images, batch_size=5).search(TEXT, top=100)
    cosine, _ = naive(loaded, images, NAMES)
    assert [hit.name for hit in hits] == sorted(NAMES, key=lambda name: -cosine[name])
    assert [hit.cosine for hit in hits] == pytest.approx([cosine[hit.name] for hit in hits], abs=1e-5)
    assert all(hit.score == hit.cosine and hit.match is None for hit in hits)
    assert max(cosine.values()) - min(cosine.values()) > 0.05  # else any order would do


def test_top_returns_the_first_hits(loaded: LoadedModel, images: Path) -> None:
    index = Index.build(loaded, images)
    assert index.search(TEXT, top=3) == index.search(TEXT, top=12)[:3]


@pytest.mark.parametrize(("top", "rerank"), [(12, 5), (3, 8), (5, 100)])
def test_reranked_scores_equal_the_formula(loaded: LoadedModel, images: Path, top: int, rerank: int) -> None:
    hits = Index.build(loaded, images).search(TEXT, top=top, rerank=rerank)
    cosine, match = naive(loaded, images, NAMES)
    scale = loaded.task.itc_heads[0].logit_scale.exp().item()
    both = {name: scale * cosine[name] + match[name] for name in NAMES}
    by_cosine = sorted(NAMES, key=lambda name: -cosine[name])
    expected = sorted(by_cosine[:rerank], key=lambda name: -both[name]) + by_cosine[rerank:]
    assert [hit.name for hit in hits] == expected[:top]
    for hit in hits[: min(top, rerank)]:
        assert (hit.score, hit.match) == pytest.approx((both[hit.name], match[hit.name]), abs=1e-4)
    assert all(hit.match is None for hit in hits[rerank:])
    assert expected[:rerank] != by_cosine[:rerank]  # else re-ranking did nothing


def test_reranking_in_chunks_gives_the_same_hits(
    loaded: LoadedModel, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.build(loaded, images)
    whole = index.search(TEXT, rerank=12)
    monkeypatch.setattr("dualfuse.search.index.PAIRS", 5)
    parts = index.search(TEXT, rerank=12)
    assert [hit.name for hit in parts] == [hit.name for hit in whole]
    assert [hit.score for hit in parts] == pytest.approx([hit.score for hit in whole], abs=1e-5)


def test_second_build_embeds_nothing(loaded: LoadedModel, images: Path, count: Callable[[], int]) -> None:
    first = Index.build(loaded, images)
    assert (count(), first.embedded, first.store.path.parent) == (12, 12, images / ".dualfuse")
    written = first.store.path.stat().st_mtime_ns
    again = Index.build(loaded, images)
    assert (count(), again.embedded, again.store.path) == (0, 0, first.store.path)
    assert again.store.path.stat().st_mtime_ns == written
    assert again.search(TEXT) == first.search(TEXT)


def test_index_moves_with_its_folder(loaded: LoadedModel, images: Path, count: Callable[[], int]) -> None:
    Index.build(loaded, images)
    moved = images.rename(images.with_name("elsewhere"))
    count()
    assert Index.build(loaded, moved).store.path.parent == moved / ".dualfuse"
    assert count() == 0


def test_changed_new_and_deleted_images_are_followed(
    loaded: LoadedModel, images: Path, count: Callable[[], int]
) -> None:
    Index.build(loaded, images)
    count()
    paint(images / "03.png", 333)
    os.utime(images / "03.png", ns=(1, 1))  # size and second may be the same
    paint(images / "00-new.png", 50)  # sorted between the others
    (images / "05.png").unlink()
    (images / "07.png").rename(images / "deep" / "7.png")
    index = Index.build(loaded, images)
    assert (count(), index.embedded, len(index)) == (3, 3, 12)
    names = tuple(index.collection.names)
    assert set(names) == {*NAMES, "00-new.png", "deep/7.png"} - {"05.png", "07.png"}
    cosine, _ = naive(loaded, images, names)
    count()
    for hits in (index.search(TEXT, top=12), Index.build(loaded, images).search(TEXT, top=12)):
        assert {hit.name: hit.cosine for hit in hits} == pytest.approx(cosine, abs=1e-5)
    assert count() == 0


def test_deleted_images_leave_the_index(loaded: LoadedModel, images: Path) -> None:
    Index.build(loaded, images)
    (images / "05.png").unlink()
    index = Index.build(loaded, images)
    assert (len(index), index.embedded) == (11, 0)
    assert "05.png" not in {hit.name for hit in index.search(TEXT, top=12)}
    assert len(index.store.embeddings) == 11


def test_interrupted_build_resumes(
    loaded: LoadedModel, images: Path, monkeypatch: pytest.MonkeyPatch, count: Callable[[], int]
) -> None:
    counting, calls = loaded.task.model.embed_image, []

    def stopping(pixels: torch.Tensor, slot: int = 0):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return counting(pixels, slot)

    monkeypatch.setattr(loaded.task.model, "embed_image", stopping)
    with pytest.raises(KeyboardInterrupt):
        Index.build(loaded, images, batch_size=4)
    monkeypatch.setattr(loaded.task.model, "embed_image", counting)
    assert count() == 8
    index = Index.build(loaded, images, batch_size=4)
    assert (count(), index.embedded, len(index)) == (4, 4, 12)
    cosine, _ = naive(loaded, images, NAMES)
    assert {hit.name: hit.cosine for hit in index.search(TEXT, top=12)} == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(("file", "place", "lost"), [("000000.fp32", b"", 12), ("manifest.sqlite", b'{"folder"', 1)])
def test_flipped_bits_of_an_index_are_reported_and_embedded_again(
    loaded: LoadedModel, images: Path, file: str, place: bytes, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    index = Index.build(loaded, images)
    path, hits = index.store.path / file, index.search(TEXT)
    content = bytearray(path.read_bytes())
    content[content.index(place) + 3] ^= 0x40
    path.write_bytes(content)
    again = Index.build(loaded, images)
    assert (again.embedded, again.search(TEXT)) == (lost, hits)
    assert f"{path.parent} cannot be used (" in caplog.text and "the images are embedded again" in caplog.text
    assert Index.build(loaded, images).embedded == 0


def write_earlier(index: Index, *, checksum: bool) -> Path:
    """Write an index file as versions before the segments did, and return its path."""
    embeddings = index.store.embeddings
    entries = [
        (name, {"folder": fields["folder"], "stamp": fields["stamp"]}) for name, fields in index.store.entries().items()
    ]
    described = json.dumps([index.store.fingerprint, entries]).encode()
    tensors = {"embeddings": embeddings, "entries": torch.frombuffer(bytearray(described), dtype=torch.uint8)}
    if checksum:
        digest = hashlib.sha256(described + embeddings.numpy().tobytes()).digest()
        tensors["checksum"] = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    path = index.store.path.with_suffix(".safetensors")
    save_file(tensors, path)
    shutil.rmtree(index.store.path)
    return path


@pytest.mark.parametrize("checksum", [True, False])
def test_index_file_of_an_earlier_version_is_taken_over(
    loaded: LoadedModel, images: Path, checksum: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = Index.build(loaded, images)
    hits, fields = first.search(TEXT), dict(first.store.entries().items())
    path = write_earlier(first, checksum=checksum)
    again = Index.build(loaded, images)
    assert (again.embedded, again.search(TEXT), dict(again.store.entries().items())) == (0, hits, fields)
    assert f"{path}: 12 embeddings of an earlier version are taken over" in caplog.text and not path.exists()
    embeddings, path = again.store.embeddings, write_earlier(again, checksum=True)
    data = path.read_bytes()
    start = data.index(embeddings.numpy().tobytes())
    path.write_bytes(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])
    assert Index.build(loaded, images).embedded == 12
    assert f"{path} cannot be used (its content differs from its checksum" in caplog.text


def test_long_builds_are_flushed_while_they_run(
    loaded: LoadedModel, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "FLUSH_EVERY", 0.0)
    embed_image, killed = loaded.task.model.embed_image, images.with_name("killed")

    def copying(pixels: torch.Tensor, slot: int = 0):
        if not killed.exists() and any(images.glob(".dualfuse/*.index")):
            shutil.copytree(images, killed)  # what a power cut would leave
        return embed_image(pixels, slot)

    monkeypatch.setattr(loaded.task.model, "embed_image", copying)
    Index.build(loaded, images, batch_size=4)
    assert Index.build(loaded, killed, batch_size=4).embedded == 8


def test_unreadable_folders_are_reported(loaded: LoadedModel, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "secret").mkdir()
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    [skipped] = Index.build(loaded, images).skipped
    assert (skipped.name, skipped.reason) == ("secret", "unreadable folder: Permission denied")


def test_unreadable_images_are_reported(loaded: LoadedModel, images: Path) -> None:
    (images / "02.png").write_bytes((images / "02.png").read_bytes()[:60])
    (images / "04.png").write_bytes(b"")
    (images / "gone.jpg").symlink_to(images / "nothing.jpg")
    os.mkfifo(images / "pipe.jpg")
    for embedded in (10, 0):
        index = Index.build(loaded, images, batch_size=3)
        assert [each.name for each in index.skipped] == ["02.png", "04.png", "gone.jpg", "pipe.jpg"]
        assert index.skipped[1].reason.startswith("0 bytes")
        assert index.skipped[2].reason == "No such file or directory"
        assert (len(index), index.embedded) == (10, embedded)
    cosine, _ = naive(loaded, images, tuple(name for name in NAMES if name not in ("02.png", "04.png")))
    assert {hit.name: hit.cosine for hit in index.search(TEXT, top=12)} == pytest.approx(cosine, abs=1e-5)


def test_source_without_readable_images_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"none of the 1 images at .* can be read; the first: one.png: 8 bytes"):
        Index.build(loaded, tmp_path)
    (tmp_path / "one.png").rename(tmp_path / "one.txt")
    with pytest.raises(ValueError, match=r"contains neither images nor tar files; it contains one"):
        Index.build(loaded, tmp_path)
    with pytest.raises(ValueError, match="no tar file matches"):
        Index.build(loaded, tmp_path / "missing")


def test_each_model_has_its_own_embeddings(folders: tuple[Path, Path], images: Path) -> None:
    one = Index.build(hub.load(folders[0]), images)
    other = Index.build(hub.load(folders[1]), images)
    assert other.embedded == 12
    assert other.store.embeddings.numpy() == pytest.approx(-one.store.embeddings.numpy(), abs=1e-6)
    copy = shutil.copytree(folders[0], folders[0].with_name("copy"))  # the same weights, another file
    assert Index.build(hub.load(copy), images).embedded == 0


def test_image_query_finds_the_image_itself(loaded: LoadedModel, images: Path) -> None:
    index = Index.build(loaded, images)
    for query in (images / "deep/er/a.jpg", (images / "deep/er/a.jpg").read_bytes()):
        first, second = index.search(query, top=2)
        assert first.name == "deep/er/a.jpg"
        assert first.cosine == pytest.approx(1, abs=1e-5)
        assert second.cosine < 0.999
    assert index.image("deep/er/a.jpg") == query


def test_invalid_queries_are_refused(loaded: LoadedModel, images: Path) -> None:
    index = Index.build(loaded, images)
    with pytest.raises(ValueError, match="only a text can be matched"):
        index.search(images / "00.png", rerank=5)
    with pytest.raises(ValueError, match="the query is empty"):
        index.search(" ")
    with pytest.raises(ValueError, match="top is 0"):
        index.search(TEXT, top=0)
    with pytest.raises(ValueError, match=r"notes.txt: 8 bytes"):
        index.search(images / "notes.txt")


def test_image_deleted_after_the_build_is_not_reranked(loaded: LoadedModel, images: Path) -> None:
    index = Index.build(loaded, images)
    first = index.search(TEXT, top=1)[0]
    (images / first.name).unlink()
    hits = index.search(TEXT, top=12, rerank=6)
    assert hits[5] == first
    assert all(hit.match is not None for hit in hits[:5])


def test_searches_shards(loaded: LoadedModel, images: Path, tmp_path: Path, count: Callable[[], int]) -> None:
    data = {name: (images / name).read_bytes() for name in NAMES if not name.endswith(".bmp")}  # no bmp in shards
    samples = [Sample(f"{number:02}", image) for number, image in enumerate(data.values())]
    tars = tmp_path / "tars"
    write_shards(samples[:6], tars, "a")
    write_shards(samples[6:], tars, "b")
    count()
    index = Index.build(loaded, tars)
    assert (count(), index.store.path.parent) == (11, tars / ".dualfuse")
    cosine, _ = naive(loaded, images, tuple(data))
    by_key = {f"{'a' if n < 6 else 'b'}-00000/{n:02}": value for n, value in enumerate(cosine.values())}
    assert {hit.name: hit.cosine for hit in index.search(TEXT, top=12)} == pytest.approx(by_key, abs=1e-5)
    assert index.image("b-00000/07") == samples[7].image
    assert index.search(samples[3].image)[0].name == "a-00000/03"

    for source, number in ((tars / "a-00000.tar", 6), (str(tars / "b-*.tar"), 5)):
        assert len(Index.build(loaded, source)) == number
    count()
    os.utime(tars / "b-00000.tar", ns=(1, 1))
    assert len(Index.build(loaded, tars)) == 11
    assert count() == 5


def test_hits_of_shards_have_the_kept_fields(
    folders: tuple[Path, Path], loaded: LoadedModel, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = {"sku": "A\x1b[31m", "price": 9.5, "stamp": "blue", "folder": None, "id": [1, "b"]}
    image = (images / "00.png").read_bytes()
    write_shards([Sample("0", image, meta={"name": "shop/ü 1.png", "keep": keep})], tmp_path / "tars", "a")
    fields = {"name": "shop/ü 1.png", **keep, "id": '[1, "b"]'}
    for store in (ToyStore(fingerprint(loaded)), None, None):  # built, read from its file
        index = Index.build(loaded, tmp_path / "tars", store=store)
        assert [hit.fields for hit in index.search(TEXT, rerank=1)] == [fields]
        assert index.search(TEXT, where={"sku": keep["sku"], "folder": "a-00000"})
    (tmp_path / "q.txt").write_text(TEXT)
    for query in ({"query": TEXT}, {"queries": tmp_path / "q.txt"}):
        searched(str(folders[0]), str(tmp_path / "tars"), **query, json=True)
        assert printed_lines(capsys)[0]["hits"][0]["fields"] == fields
        searched(str(folders[0]), str(tmp_path / "tars"), **query)
        end = 'a-00000/0  name=shop/ü 1.png  folder=None  id=[1, "b"]  price=9.5  sku=A\\x1b[31m  stamp=blue'
        assert capsys.readouterr().out.rstrip().endswith(end)


def test_folder_with_images_and_tars_is_refused(loaded: LoadedModel, images: Path) -> None:
    write_shards([Sample("0", (images / "00.png").read_bytes())], images, "set")
    with pytest.raises(ValueError, match=r"12 image\(s\), such as 00.png, and 1 tar file\(s\), such as set-00000.tar"):
        Index.build(loaded, images)
    assert len(Index.build(loaded, images / "*.tar")) == 1


def test_index_of_a_read_only_folder_is_in_the_cache(
    loaded: LoadedModel, images: Path, cache: Path, count: Callable[[], int]
) -> None:
    Index.build(loaded, images)
    kept = next((images / ".dualfuse").iterdir())
    shutil.rmtree(images / ".dualfuse")
    (images / ".dualfuse").write_text("a file in its place: nothing can be written below it")
    index = Index.build(loaded, images)
    assert index.store.path.parent == cache / "dualfuse" / "search"
    count()
    assert Index.build(loaded, images).store.path == index.store.path
    assert (count(), kept.exists()) == (0, False)

    shutil.rmtree(cache)
    cache.write_text("nor here")
    index = Index.build(loaded, images)
    assert (index.store.path, len(index.search(TEXT, top=12))) == (None, 12)


def test_newest_of_two_index_files_is_read(
    loaded: LoadedModel, images: Path, tmp_path: Path, count: Callable[[], int]
) -> None:
    stale = Index.build(loaded, images).store.path
    aside = shutil.move(stale.parent, tmp_path / "aside")
    (images / ".dualfuse").touch()
    paint(images / "13.png", 13)
    cached = Index.build(loaded, images).store.path
    (images / ".dualfuse").unlink()
    shutil.move(aside, stale.parent)
    os.utime(stale, ns=(1, 1))
    count()
    assert Index.build(loaded, images).store.path == cached
    assert count() == 0


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"", lambda data: b"x" * len(data)])
def test_damaged_index_is_rebuilt(loaded: LoadedModel, images: Path, damage: Callable[[bytes], bytes]) -> None:
    first = Index.build(loaded, images)
    hits = first.search(TEXT)
    manifest = first.store.path / "manifest.sqlite"
    manifest.write_bytes(damage(manifest.read_bytes()))
    again = Index.build(loaded, images)
    assert again.embedded == 12
    assert again.search(TEXT) == hits


def test_embeddings_that_are_not_finite_are_refused(loaded: LoadedModel, images: Path) -> None:
    loaded.task.itc_heads[0].image.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="did its training diverge"):
        Index.build(loaded, images)


def test_prints_and_draws(
    folders: tuple[Path, Path], loaded: LoadedModel, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken[b].png").write_bytes(b"x")
    grid = tmp_path / "new" / "sheet.png"
    searched(str(folders[0]), str(images), TEXT, top=7, rerank=3, save_image=grid)
    printed = capsys.readouterr()
    hits = Index.build(loaded, images).search(TEXT, top=7, rerank=3)
    lines = printed.out.splitlines()
    assert lines[0].split() == ["rank", "score", "cosine", "ITM", "image"]
    assert [line.split(maxsplit=4)[4] for line in lines[1:]] == [hit.name for hit in hits]
    assert [line.split()[1] for line in lines[1:]] == [f"{hit.score:.3f}" for hit in hits]
    assert lines[4].split()[3] == "-"
    assert "12 images: 12 embedded now, 0 from the index" in printed.err
    assert "1 unreadable images skipped:\n  broken[b].png: 1 bytes" in printed.err
    with Image.open(grid) as drawn:
        assert drawn.width > 5 * 200 and drawn.height > 2 * 200  # two rows of five

    searched(str(folders[0]), str(images), str(images / "00.png"), top=2)
    lines = capsys.readouterr().out.splitlines()[1:]
    hits = Index.build(loaded, images).search(images / "00.png", top=2)
    assert lines[0].split() == ["1", "1.0000", "00.png"]
    assert [line.split()[2] for line in lines] == [hit.name for hit in hits]


def test_invalid_options_are_refused_before_embedding(folders: tuple[Path, Path], images: Path) -> None:
    with pytest.raises(ValueError, match=r"dog.jpg does not exist"):
        searched(str(folders[0]), str(images), "dog.jpg")
    with pytest.raises(ValueError, match=r"must end in .png or .jpg"):
        searched(str(folders[0]), str(images), TEXT, save_image=images / "sheet.txt")
    with pytest.raises(ValueError, match=r"leave out --rerank"):
        searched(str(folders[0]), str(images), str(images / "00.png"), rerank=1)
    assert not (images / ".dualfuse").exists()


def test_file_names_of_any_bytes_are_printed(
    folders: tuple[Path, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsdecode(b"\xff\n\x1b[31m.png")
    shutil.copy(images / "00.png", images / odd)
    for _ in range(2):
        searched(str(folders[0]), str(images), TEXT, top=13, save_image=tmp_path / "hits.jpg", force=True)
        assert r"\udcff\n\x1b[31m.png" in capsys.readouterr().out
    assert printable("ü [1]") == "ü [1]"


def test_filter_restricts_the_search(loaded: LoadedModel, images: Path) -> None:
    index = Index.build(loaded, images)
    hits = index.search(TEXT, top=12)
    inside = [hit.name for hit in hits if hit.name.startswith("deep/")]
    assert [hit.name for hit in index.search(TEXT, top=12, where={"folder": ("deep", "deep/er")})] == inside
    assert [hit.name for hit in index.search(TEXT, top=1, rerank=2, where={"folder": "deep/er"})] == ["deep/er/a.jpg"]


def test_where_restricts_the_command(
    folders: tuple[Path, Path], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert searched(str(folders[0]), str(images), TEXT, where="folder ^= deep and not folder = deep", json=True) == 0
    assert [hit["name"] for hit in printed_lines(capsys)[0]["hits"]] == ["deep/er/a.jpg"]
    with pytest.raises(DualfuseError, match="a value is expected at its end"):
        searched(str(folders[0]), str(images), TEXT, where="folder =")


def test_store_of_another_model_is_refused(loaded: LoadedModel, images: Path) -> None:
    with pytest.raises(ValueError, match="embeddings of the model another, not of this one"):
        Index.build(loaded, images, store=ExactStore("another"))


def test_store_is_used_by_the_protocol_alone(loaded: LoadedModel, images: Path) -> None:
    store = ToyStore(fingerprint(loaded))
    hits = Index.build(loaded, images, store=store).search(TEXT, top=12)
    assert [hit.name for hit in hits] == [hit.name for hit in Index.build(loaded, images).search(TEXT, top=12)]
    (images / "05.png").unlink()
    paint(images / "03.png", 333)
    again = Index.build(loaded, images, store=store)
    assert (again.embedded, len(again), len(store.items)) == (1, 11, 11)


def searched(*flags: Any, **options: Any) -> int:
    return search_command.run(search_command.Options(*flags, **options))


def printed_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_one_query_as_json(
    folders: tuple[Path, Path], loaded: LoadedModel, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert searched(str(folders[0]), str(images), TEXT, top=3, rerank=2, json=True) == 0
    (line,) = printed_lines(capsys)
    hits = Index.build(loaded, images).search(TEXT, top=3, rerank=2)
    assert line == {
        "query": TEXT,
        "hits": [{"rank": rank, **vars(hit)} for rank, hit in enumerate(hits, start=1)],
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("queries.txt", "\ufeffa cat\r\nq.png\n\nnone.png\n"),
        ("queries.csv", "id,query\n1,a cat\n2,q.png\n,none.png\n"),
        ("queries.jsonl", '{"text": "a cat", "id": 1}\n{"image": "q.png"}\n{"image": "none.png"}\n'),
    ],
)
def test_many_queries(
    folders: tuple[Path, Path],
    loaded: LoadedModel,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
) -> None:
    """Texts and paths relative to the file; a missing image is the problem of its query only."""
    queries = tmp_path / "elsewhere" / name
    queries.parent.mkdir()
    queries.write_text(content, encoding="utf-8")
    shutil.copy(images / "03.png", queries.parent / "q.png")
    assert searched(str(folders[0]), str(images), queries=queries, top=2, json=True) == 0
    text, image, missing = printed_lines(capsys)
    hits = Index.build(loaded, images).search("a cat", top=2)
    assert (text["query"], text["hits"]) == ("a cat", [{"rank": n, **vars(hit)} for n, hit in enumerate(hits, start=1)])
    assert image["hits"][0]["name"] == "03.png"
    assert "none.png" in missing["problem"] and "hits" not in missing
    assert ("id" in text) == (name != "queries.txt")
    assert searched(str(folders[0]), str(images), queries=queries, top=2) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("query: a cat\nrank") and "\n\nquery: none.png\nproblem: " in printed


def test_status_of_queries_that_cannot_be_used(
    folders: tuple[Path, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.txt").write_text("none.png\nalso-none.jpg\n")
    assert searched(str(folders[0]), str(images), queries=tmp_path / "q.txt", json=True) == 1
    assert ["problem" in line for line in printed_lines(capsys)] == [True, True]
    (tmp_path / "q.csv").write_text("id,words\n1,a\n")
    (tmp_path / "cp1252.txt").write_bytes("a\ncafé\n".encode("cp1252"))
    for name, fact in (("q.csv", "has no column called query"), ("cp1252.txt", r"cp1252.txt.* byte 4 .* line 2")):
        with pytest.raises(DualfuseError, match=fact):
            searched(str(folders[0]), str(images), queries=tmp_path / name)
    with pytest.raises(DualfuseError, match="one query, or --queries"):
        searched(str(folders[0]), str(images))
    with pytest.raises(DualfuseError, match="--save-image"):
        searched(str(folders[0]), str(images), queries=tmp_path / "q.txt", save_image=tmp_path / "a.png")


def test_query_that_is_a_file_is_searched_by_content_or_refused(
    folders: tuple[Path, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(images / "03.png", tmp_path / "without-ending")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    searched(str(folders[0]), str(images), str(tmp_path / "without-ending"), top=1)
    assert "03.png" in capsys.readouterr().out
    with pytest.raises(DualfuseError, match=r"photo.heic: .* not an image"):
        searched(str(folders[0]), str(images), str(tmp_path / "photo.heic"))
    with pytest.raises(DualfuseError, match="not valid Unicode"):
        searched(str(folders[0]), str(images), "a \udcff cat")


def test_drawing_does_not_become_an_image_of_the_collection(folders: tuple[Path, Path], images: Path) -> None:
    for path in (images / "hits.png", images / "new" / "hits.png", images / "deep" / ".." / "hits.jpg"):
        with pytest.raises(DualfuseError, match="outside"):
            searched(str(folders[0]), str(images), TEXT, save_image=path)
    assert not (images / "new").exists() and not (images / "hits.png").exists()


def test_search_without_a_home_folder(loaded: LoadedModel, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: object) -> object:
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    index = Index.build(loaded, images)
    assert Path(index.store.location).is_relative_to(images / ".dualfuse")
    assert Index.build(loaded, images).embedded == 0
