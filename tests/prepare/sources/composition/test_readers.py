"""Benchmarks in the layouts of their owners, with tiny images: cases, captions, images, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import png_image

from dualfuse.errors import DualfuseError
from dualfuse.evaluation.composition import Benchmark, CompositionCase
from dualfuse.prepare.benchmarks import open_benchmark
from dualfuse.prepare.sources.composition import scenes


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png_image(number))


def written(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def captions(benchmark: Benchmark, case: CompositionCase) -> list[str]:
    assert benchmark.samples is not None
    return [benchmark.samples[image].texts[place] for image, place in case.captions]


def pixels(benchmark: Benchmark, number: int) -> np.ndarray:
    assert benchmark.samples is not None
    return np.asarray(Image.open(io.BytesIO(benchmark.samples[number].image)).convert("RGB"))


WINOGROUND = {
    "id": 7, "image_0": "ex_7_img_0", "image_1": "ex_7_img_1", "tag": "Noun", "secondary_tag": "", "num_main_preds": 1,
    "caption_0": "a cat on a dog", "caption_1": "a dog on a cat", "collapsed_tag": "Object",
}  # fmt: skip


@pytest.mark.parametrize("folder", ["data", ""])
def test_winoground(tmp_path: Path, folder: str) -> None:
    written(tmp_path / folder / "examples.jsonl", json.dumps(WINOGROUND) + "\n")
    images(tmp_path / folder / "images", "ex_7_img_0.png", "ex_7_img_1.png")
    benchmark = open_benchmark("winoground", tmp_path)
    (case,) = benchmark.cases
    assert (case.key, case.category, case.images) == ("7", "Object", (0, 1))
    assert captions(benchmark, case) == ["a cat on a dog", "a dog on a cat"]
    assert [image for image, _ in case.captions] == [0, 1]  # each caption belongs to its image
    assert benchmark.samples is not None and benchmark.samples[1].image == png_image(1)


def test_winoground_in_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = WINOGROUND | {f"image_{side}": {"bytes": png_image(side), "path": None} for side in (0, 1)}
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data" / "test-00000-of-00001.parquet")
    benchmark = open_benchmark("winoground", tmp_path)
    assert benchmark.samples is not None
    assert [benchmark.samples[number].image for number in (0, 1)] == [png_image(0), png_image(1)]


def relation(**changes: object) -> dict[str, object]:
    return {
        "image_id": "1", "relation_name": "on", "image_path": "1.png", "object1_name": "cat", "object2_name": "dog",
        "true_caption": "the cat is on the dog", "false_caption": "the dog is on the cat",
        "bbox_x": 8, "bbox_y": 0, "bbox_w": 16, "bbox_h": 24,
    } | changes  # fmt: skip


def test_aro(tmp_path: Path) -> None:
    written(tmp_path / "visual_genome_relation.json", [relation(), relation(bbox_x=0), relation(relation_name="under")])
    attribution = relation(
        attributes=["red", "blue"], true_caption="red cat, blue dog", false_caption="blue cat, red dog"
    )
    written(tmp_path / "visual_genome_attribution.json", [attribution])
    order = {"image": "val2014/2.png", "caption_options": ["a b c", "b a c", "c b a", "a c b", "b c a"]}
    written(tmp_path / "coco_order.json", [order])
    images(tmp_path, "images/1.png", "val2014/2.png")
    benchmark = open_benchmark("aro", tmp_path)
    kinds = [(case.category, case.group, len(case.captions)) for case in benchmark.cases]
    assert sorted(kinds) == [
        ("coco_order", "", 5), ("vg_attribution", "red_blue", 2),
        ("vg_relation", "on", 2), ("vg_relation", "on", 2), ("vg_relation", "under", 2),
    ]  # fmt: skip
    first, moved, same = (case for case in benchmark.cases if case.category == "vg_relation")
    assert captions(benchmark, first) == ["the cat is on the dog", "the dog is on the cat"]
    assert first.images == same.images != moved.images  # one image per box
    whole = np.asarray(Image.open(io.BytesIO(png_image(0))))
    assert (pixels(benchmark, first.images[0]) == whole[0:24, 8:24]).all()


def test_file_of_captions_for_order_is_refused_with_the_reason(tmp_path: Path) -> None:
    written(tmp_path / "coco_karpathy_test.json", [{"image": "1.png", "caption": ["a b"]}])
    with pytest.raises(DualfuseError, match=r"caption_options.*part-of-speech"):
        open_benchmark("aro", tmp_path)


def test_sugarcrepe(tmp_path: Path) -> None:
    entries = {
        "0": {"filename": "1.png", "caption": "a cat", "negative_caption": "a dog"},
        "2": {"filename": "1.png", "caption": "a cat", "negative_caption": "a tree"},
    }
    written(tmp_path / "data" / "replace_obj.json", entries)
    written(tmp_path / "data" / "swap_att.json", {"0": entries["0"] | {"filename": "2.png"}})
    images(tmp_path / "val2017", "1.png", "2.png")
    benchmark = open_benchmark("sugarcrepe", tmp_path / "data", tmp_path / "val2017")
    assert [(case.category, case.key) for case in benchmark.cases] == [
        ("replace_obj", "replace_obj/0"), ("replace_obj", "replace_obj/2"), ("swap_att", "swap_att/0"),
    ]  # fmt: skip
    assert benchmark.samples is not None and len(benchmark.samples) == 2
    assert benchmark.samples[0].texts == ("a cat", "a dog", "a tree")  # each caption is scored once
    assert captions(benchmark, benchmark.cases[1]) == ["a cat", "a tree"]


def test_sugarcrepe_plus_plus(tmp_path: Path) -> None:
    entry = {"id": 0, "filename": "1.png", "caption": "a cat", "caption2": "one cat", "negative_caption": "a dog"}
    written(tmp_path / "swap_obj.json", [entry])
    images(tmp_path / "images", "1.png")
    benchmark = open_benchmark("sugarcrepe++", tmp_path)
    (case,) = benchmark.cases
    assert (captions(benchmark, case), case.true) == (["a cat", "one cat", "a dog"], 2)
    written(tmp_path / "swap_obj.json", [{name: entry[name] for name in entry if name != "caption2"}])
    with pytest.raises(DualfuseError, match=r"entry 0 of .*caption2"):  # SugarCrepe, not SugarCrepe++
        open_benchmark("sugarcrepe++", tmp_path)


MCQ = """correct_answer,caption_0,caption_1,caption_2,caption_3,correct_answer_template,image_path
0,a cat and no dog,a dog and no cat,a dog,no cat,hybrid,/home/owner/coco/val2017/1.png
2,"no cat, no dog",a dog,a cat,a tree,positive,/home/owner/coco/val2017/2.png
"""
RETRIEVAL = """filepath,captions,image_id
/home/owner/coco/val2017/1.png,"['a cat but no dog', ""a cat's house""]",1
/home/owner/coco/val2017/2.png,"['no cat']",2
"""


def test_negbench(tmp_path: Path) -> None:
    written(tmp_path / "images" / "COCO_val_mcq_llama3.1_rephrased.csv", MCQ)
    written(tmp_path / "images" / "COCO_val_negated_retrieval.csv", RETRIEVAL)
    images(tmp_path / "val2017", "1.png", "2.png")
    benchmark = open_benchmark("negbench", tmp_path, tmp_path / "val2017")
    hybrid, positive = benchmark.cases
    assert hybrid.category == "COCO_val_mcq_llama3.1_rephrased/hybrid"
    assert captions(benchmark, hybrid)[0] == "a cat and no dog"
    assert captions(benchmark, positive) == ["a cat", "no cat, no dog", "a dog", "a tree"]  # the right one first
    gallery = benchmark.galleries["COCO_val_negated_retrieval"]
    assert [gallery[number].texts for number in (0, 1)] == [("a cat but no dog", "a cat's house"), ("no cat",)]
    assert gallery[1].image == png_image(1)


@pytest.mark.parametrize("cell", ["__import__('os').getcwd()", "('a'", "[1, 2]", "[]", "[" * 5000])
def test_captions_of_negbench_are_literals(tmp_path: Path, cell: str) -> None:
    written(tmp_path / "retrieval.csv", f'filepath,captions\n1.png,"{cell}"\n')
    with pytest.raises(DualfuseError, match=r"row 1 of .*not a list of texts"):
        open_benchmark("negbench", tmp_path)


@pytest.mark.parametrize("answer", ["4", "-1", "", "first"])
def test_answer_of_negbench_is_the_number_of_a_caption(tmp_path: Path, answer: str) -> None:
    written(tmp_path / "mcq.csv", MCQ.replace("\n0,", f"\n{answer},"))
    with pytest.raises(DualfuseError, match=r"row 1 of .*correct_answer"):
        open_benchmark("negbench", tmp_path)


def test_missing_images_are_counted_unless_they_are_allowed(tmp_path: Path) -> None:
    entries = {str(n): {"filename": f"{n}.png", "caption": "a", "negative_caption": "b"} for n in range(4)}
    written(tmp_path / "add_att.json", entries)
    images(tmp_path / "images", "1.png")
    with pytest.raises(DualfuseError, match=r"3 of 4 images of SugarCrepe are missing, such as 0\.png.*--images"):
        open_benchmark("sugarcrepe", tmp_path)
    assert len(open_benchmark("sugarcrepe", tmp_path, allow_missing=True).cases) == 4


@pytest.mark.parametrize("name", ["winoground", "aro", "sugarcrepe", "sugarcrepe++", "negbench"])
def test_empty_folder_and_missing_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DualfuseError, match=str(tmp_path)):
        open_benchmark(name, tmp_path)
    with pytest.raises(DualfuseError, match="does not exist"):
        open_benchmark(name, tmp_path / "elsewhere")


def test_names_of_benchmarks_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DualfuseError, match="winoground, aro"):
        open_benchmark("vsr", tmp_path)


def test_scenes_are_drawn_with_a_sample_for_each_scene() -> None:
    benchmark = scenes.draw(2, seed=1)
    assert len(benchmark.cases) == 18 and benchmark.samples is not None and len(benchmark.samples) == 20
    assert scenes.draw(2, seed=1).samples[3].image == benchmark.samples[3].image  # type: ignore[index]
    with pytest.raises(DualfuseError, match="1 or more"):
        scenes.draw(0, seed=1)
