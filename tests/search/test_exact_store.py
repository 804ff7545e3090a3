"""The exact store returns what numpy returns by brute force, whatever was added, removed, filtered, coded or killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualfuse.errors import DualfuseError
from dualfuse.search.stores import segment, segments
from dualfuse.search.stores.codecs import codec, int_products_are_exact
from dualfuse.search.stores.exact import ExactStore
from dualfuse.search.stores.filters import matches

WIDTH = 24
FILTERS = st.sampled_from(
    [
        None,
        {"folder": "a"},
        {"size": {"$lt": 30}},
        {"size": {"$gte": 3, "$lt": 5}},
        {"folder": {"$prefix": "b"}, "size": {"$ne": 4}},
        {"$or": [{"folder": None}, {"$not": {"size": {"$gt": 7}}}]},
        {"none": "x"},
    ]
)


def unit(rng: np.random.Generator, count: int, width: int = WIDTH) -> np.ndarray:
    """Return embeddings of a few clusters, so that many are nearly equal, with some large values."""
    centers = rng.normal(size=(5, width)) * (1 + 20 * (np.arange(width) == 3))
    embeddings = centers[rng.integers(0, 5, count)] + 0.1 * rng.normal(size=(count, width))
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)


def brute_force(items: dict, query: np.ndarray, k: int, where: dict | None) -> list[float]:
    """Return the k best scores in double precision."""
    scores = [float(query.astype(float) @ e.astype(float)) for e, m in items.values() if matches(m, where or {})]
    return sorted(scores, reverse=True)[:k]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), where=FILTERS, k=st.integers(1, 40))
def test_recall_is_one_under_any_filter(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, where: dict | None, k: int
) -> None:
    monkeypatch.setattr(segment, "CAPACITY", 32)
    monkeypatch.setattr(segments, "CAPACITY", 32)
    monkeypatch.setattr(segments, "COMPACTED", 8)
    rng = np.random.default_rng(seed)
    folder, items = tmp_path / f"{precision}-{seed}.index", {}
    shutil.rmtree(folder, ignore_errors=True)
    store = ExactStore.open("m", [folder], precision=precision)
    for step in range(4):
        names = [f"{number}" for number in rng.choice(120, 40, replace=False)]
        embeddings = unit(rng, 40)
        metadata = [{"folder": ("a", "b", "bc", None)[int(name) % 4], "size": int(name) % 11} for name in names]
        store.add(names, torch.from_numpy(embeddings), metadata)
        items |= dict(zip(names, zip(embeddings, metadata, strict=True), strict=True))
        removed = [name for name in items if rng.random() < 0.4]
        store.remove(removed)
        for name in removed:
            del items[name]
        if step % 2:
            store.flush()
        if step == 2:
            store.flush()
            store = ExactStore.open("m", [folder], precision=precision)
        queries = unit(rng, 2)
        answer = store.search(torch.from_numpy(queries), k, where)
        assert answer.exact and answer.version == store.version
        for query, found in zip(queries, answer, strict=True):
            assert [match.score for match in found] == pytest.approx(brute_force(items, query, k, where), abs=1e-6)
            assert [match.score for match in found] == pytest.approx(
                [float(items[match.name][0] @ query) for match in found], abs=1e-6
            )
        assert dict(store.entries().items()) == {name: fields for name, (_, fields) in items.items()}


def test_bounds_hold_and_int8_reads_few_candidates() -> None:
    rng = np.random.default_rng(0)
    rows, queries = torch.from_numpy(unit(rng, 4000, 96)), torch.from_numpy(unit(rng, 3, 96))
    rows[500] *= 40  # clipped
    for precision in ("fp16", "int8"):
        coder = codec(precision, 0, 96)
        state = coder.fit(rows[:100])
        codes, bounds = coder.encode(rows, state)
        scores, query_error = coder.score(queries, codes, state)
        error = queries.norm(dim=1) * bounds[:, :1] + query_error * bounds[:, 1:] + 1e-4
        assert ((scores - rows @ queries.T).abs() <= error).all()
        assert error.quantile(0.99) < (0.1 if precision == "int8" else 1e-3)


def test_processors_without_exact_int8_products_use_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    store = ExactStore("m", "int8")
    embeddings = torch.from_numpy(unit(rng, 300))
    store.add([f"{n}" for n in range(300)], embeddings, [{}] * 300)
    store.flush()
    expected = store.search(embeddings[:3], 5)
    monkeypatch.setattr("dualfuse.search.stores.codecs.int_products_are_exact", lambda: False)
    assert store.search(embeddings[:3], 5) == expected
    assert isinstance(int_products_are_exact(), bool)


@pytest.mark.parametrize(("precision", "dimensions"), [("bits", 0), ("fp32", 32), ("int8", 48)])
def test_approximate_codes_find_most_and_filtered_searches_all(tmp_path: Path, precision: str, dimensions: int) -> None:
    rng = np.random.default_rng(2)
    embeddings = torch.nn.functional.normalize(
        torch.from_numpy(rng.normal(size=(3000, 64)) * np.geomspace(1, 0.1, 64)).float()
    )
    store = ExactStore.open("m", [tmp_path / "a.index"], precision=precision, dimensions=dimensions)
    store.add([f"{n}" for n in range(3000)], embeddings, [{"half": n % 2} for n in range(3000)])
    store.flush()
    exact = ExactStore.open("m", [tmp_path / "a.index"])
    found, expected = store.search(embeddings[:20], 10), exact.search(embeddings[:20], 10)
    recall = [len({m.name for m in a} & {m.name for m in b}) / 10 for a, b in zip(found, expected, strict=True)]
    assert np.mean(recall) > 0.9 and not found.exact and expected.exact
    filtered = store.search(embeddings[:20], 10, {"half": 1})
    assert filtered == exact.search(embeddings[:20], 10, {"half": 1}) and filtered.exact


def test_a_store_that_was_opened_before_keeps_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "COMPACTED", 8)
    paths, embeddings = [tmp_path / "a.index"], torch.from_numpy(unit(np.random.default_rng(3), 60))
    writer = ExactStore.open("m", paths)
    writer.add([f"{n}" for n in range(60)], embeddings, [{"n": n} for n in range(60)])
    writer.flush()
    reader = ExactStore.open("m", paths)
    before = reader.search(embeddings[:4], 9), reader.search(embeddings[:4], 9, {"n": {"$lt": 50}})
    writer = ExactStore.open("m", paths)
    writer.remove([f"{n}" for n in range(50)])
    writer.add(["0"], -embeddings[:1], [{"n": -1}])
    writer.flush()
    assert not (paths[0] / "000000.fp32").exists()  # compacted
    assert (reader.search(embeddings[:4], 9), reader.search(embeddings[:4], 9, {"n": {"$lt": 50}})) == before
    assert (len(reader.entries()), reader.entries()["0"], len(writer.entries())) == (60, {"n": 0}, 11)
    assert reader.version != writer.version == ExactStore.open("m", paths).version
    with pytest.raises(DualfuseError, match="another process has changed the index"):
        reader.add(["x"], embeddings[:1], [{}])


def test_a_build_writes_each_embedding_once(tmp_path: Path) -> None:
    store = ExactStore.open("m", [tmp_path / "a.index"])
    written = 0
    for part in range(20):
        store.add([f"{part}-{n}" for n in range(100)], torch.randn(100, 256), [{"folder": "x"}] * 100)
        before = {path: path.read_bytes() for path in (tmp_path / "a.index").glob("*.fp32")}
        store.flush()
        for path, data in before.items():  # appended, not replaced
            assert path.read_bytes()[: len(data)] == data
        written += 100 * 256 * 4
    assert (tmp_path / "a.index" / "000000.fp32").stat().st_size == written


def test_a_full_disk_moves_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / "a.index", tmp_path / "b.index"]
    embeddings = torch.from_numpy(unit(np.random.default_rng(4), 30))
    store = ExactStore.open("m", paths)
    store.add([f"{n}" for n in range(10)], embeddings[:10], [{}] * 10)
    store.flush()
    store.add([f"{n}" for n in range(10, 20)], embeddings[10:20], [{}] * 10)
    append = segment.Rows.append

    def full(rows: segment.Rows, values: np.ndarray) -> None:
        if rows.path is not None and rows.path.is_relative_to(paths[0]):
            raise OSError(28, "No space left on device", str(rows.path))
        append(rows, values)

    monkeypatch.setattr(segment.Rows, "append", full)
    store.add([f"{n}" for n in range(20, 30)], embeddings[20:], [{}] * 10)
    store.flush()
    assert store.path == paths[1] and "No space left" in caplog.text
    for each in (store, ExactStore.open("m", paths)):
        assert {match.name for match in each.search(embeddings[:1], 99)[0]} == {f"{n}" for n in range(30)}


KILLED = """
    import sys, torch
    from pathlib import Path
    from dualfuse.search.stores import segments
    from dualfuse.search.stores.exact import ExactStore
    segments.COMPACTED = 50
    store = ExactStore.open("m", [Path(sys.argv[1])], precision="int8")
    step = int(store.version)
    while True:
        generator = torch.Generator().manual_seed(step)
        embeddings = torch.nn.functional.normalize(torch.randn(100, 64, generator=generator))
        store.remove([f"{step - 3}-{n}" for n in range(100)])
        store.add([f"{step}-{n}" for n in range(100)], embeddings, [{"step": step}] * 100)
        store.flush()
        step += 1
        print(step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_one_flushed_state(tmp_path: Path) -> None:
    """``kill -9`` at random times while embeddings are added, removed and compacted."""
    rng, folder = np.random.default_rng(5), tmp_path / "a.index"
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)], stdout=subprocess.PIPE, env=dict(os.environ)
        )
        assert process.stdout
        for _ in range(int(rng.integers(1, 6))):
            reported = int(process.stdout.readline())
        with suppress(subprocess.TimeoutExpired):
            process.wait(float(rng.random()) * 0.05)
        process.kill()
        process.wait()
        process.stdout.close()
        store = ExactStore.open("m", [folder], precision="int8")
        step = int(store.version)
        assert step >= reported
        expected = range(max(0, step - 3), step)
        assert {entry["step"] for entry in store.entries().values()} == set(expected)
        assert len(store.entries()) == store.count() == 100 * len(expected)
        for each in expected:
            embeddings = torch.nn.functional.normalize(
                torch.randn(100, 64, generator=torch.Generator().manual_seed(each))
            )
            best = store.search(embeddings, 1)
            assert [match[0].name for match in best] == [f"{each}-{n}" for n in range(100)]
