"""Files of questions and labels, as their owners publish them, become shards that the tasks read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console
from tiny import lines, png_image, recipe, tokenizer

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.prepare import output_folder as prepared_folder
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.registry import recognize
from dualfuse.prepare.sources.label_names import parse_label
from dualfuse.prepare.sources.questions import vqav2
from dualfuse.prepare.sources.source import Item
from dualfuse.prepare.summary import Summary
from dualfuse.recipe import Run
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.questions import QuestionExample
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.training import loop

ONE = PrepareOptions(num_workers=1)
RNG = np.random.default_rng(0)


def put(path: Path, content: bytes | str | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def json_lines(path: Path, rows: Sequence[object]) -> Path:
    return put(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def samples(out: Path, split: str) -> dict[object, Sample]:
    return {sample.meta["id"]: sample for sample in Shards.open(out / f"{split}-*.tar")}


def skipped(out: Path) -> dict[object, str]:
    return {row["id"]: row["reason"] for row in map(json.loads, (out / "skipped.jsonl").read_text().splitlines())}


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.endswith(".npz")}


def printed(summary: Summary) -> str:
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(summary)
    return console.export_text()


@pytest.fixture
def processor(tmp_path: Path) -> Processor:
    return Processor(ImageTransform((32, 32)), TextTransform(12, tokenizer(tmp_path / "words")))


def coco(part: str, image: int) -> str:
    return f"{part}/COCO_{part}_{image:012d}.jpg"


def ask(number: int, text: str = "") -> dict[str, object]:
    return {"image_id": number // 1000, "question": text or f"is {number} red", "question_id": number}


def answer(number: int, common: str, *others: str) -> dict[str, object]:
    given = [*others, *[common] * (10 - len(others))]
    return {
        "question_type": "is",
        "multiple_choice_answer": common,
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(given, start=1)],
        "image_id": number // 1000,
        "answer_type": "yes/no" if common in ("yes", "no") else "other",
        "question_id": number,
    }


def questions_json(folder: Path, part: str, questions: Sequence[object]) -> Path:
    name = f"v2_OpenEnded_mscoco_{part}_questions.json"
    return put(folder / name, {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "questions": questions})


def annotations_json(folder: Path, part: str, annotations: Sequence[object]) -> Path:
    return put(folder / f"v2_mscoco_{part}_annotations.json", {"info": {}, "annotations": annotations})


def vqa(root: Path) -> Path:
    """No 9 times and Yes 8 times in train; in val once "Yes.", 9 times red; and all that can go wrong."""
    train_ids = [1000 + n for n in range(9)] + [2000 + n for n in range(8)]
    common = ["no"] * 9 + ["yes"] * 8
    questions_json(
        root,
        "train2014",
        [*map(ask, train_ids), ask(3000), ask(3001), ask(1000), ask(3002, "is 3000 red"), ask(9000)],
    )
    annotations_json(
        root,
        "train2014",
        [
            *(answer(number, most) for number, most in zip(train_ids, common, strict=True)),
            answer(3000, "zebra", "No", "the no", "no!"),
            answer(3002, "zebra"),
            answer(9000, "zebra", "no"),
            answer(8000, "zebra"),
        ],
    )
    val_ids = [5000, *(6000 + n for n in range(9)), 7000]
    questions_json(root, "val2014", [*map(ask, val_ids), ask(7001, "is 7000 red")])
    annotations_json(
        root,
        "val2014",
        [
            answer(5000, "Yes."),
            *(answer(number, "red") for number in val_ids[1:-1]),
            *(answer(7000, "zebra"), answer(7001, "red", "two")),
        ],
    )
    questions_json(root, "test2015", [ask(11000), ask(11001)])
    questions_json(root, "test-dev2015", [ask(11001)])
    for part, images in {"train2014": (1, 2, 3), "val2014": (5, 6, 7), "test2015": (11,)}.items():
        for image in images:
            put(root.parent / coco(part, image), png_image(image))
    return root


@pytest.fixture(autouse=True)
def few_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqav2, "HELD_OUT", 1)


def test_vqav2(tmp_path: Path) -> None:
    source, out = vqa(tmp_path / "coco" / "vqa"), tmp_path / "out"
    assert recognize(source) == ("vqav2", source)
    summary = prepare(source, out, ONE)
    assert read_vocabulary(out / "answers.txt") == ("no", "yes", "red")
    train_set = samples(out, "train")
    assert list(train_set) == [*range(1000, 1009), *range(2000, 2008), 3000]
    assert train_set[3000].texts == ("is 3000 red",) and train_set[3000].image == png_image(3)
    assert train_set[3000].meta == {
        "id": 3000, "image_id": 3, "answer_type": "other", "answers": ["No", "the no", "no!", *["zebra"] * 7],
        "name": "train2014/COCO_train2014_000000000003.jpg", "width": 32, "height": 32,
    }  # fmt: skip
    assert set(samples(out, "trainable_val")) == {5000, *range(6000, 6009)}
    assert set(samples(out, "rest_val")) == {7000, 7001}
    assert list(samples(out, "test")) == [11000] and list(samples(out, "test_dev")) == [11001]
    assert "answers" not in samples(out, "test")[11000].meta
    assert skipped(out) == {
        3001: "nobody answered it", 1000: "its id came before", 3002: vqav2.UNKNOWN, 9000: "missing image",
        8000: "answers without a question",
    }  # fmt: skip
    assert summary.tally.noted == {vqav2.UNKNOWN: 1, "the same text about the same image came before": 1}
    said = printed(summary)
    assert "3 answers, the most common answer of 9 or more questions of train2014 and val2014\n" in said
    assert "1 questions of test2015 are also in test-dev2015" in said
    assert f"1 kept: {vqav2.UNKNOWN}, such as val2014/COCO_val2014_000000000007.jpg (7000)" in said
    assert "1 skipped: nobody answered it, such as train2014/COCO_train2014_000000000003.jpg (3001)" in said


def test_images_are_stored_once_for_all_questions(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(vqa(tmp_path / "vqa"), out, ONE)
    [shard] = out.glob("train-*.tar")
    with tarfile.open(shard) as tar:
        images = [member for member in tar if member.name.endswith(".png")]
    assert sum(member.isreg() for member in images) == 3 and len(images) == 18
    assert {sample.image for sample in Shards.open(shard)[9:17]} == {png_image(2)}


def test_vqa_task_reads_vqav2(tmp_path: Path, processor: Processor) -> None:
    out = tmp_path / "out"
    prepare(vqa(tmp_path / "vqa"), out, ONE)
    task = VQAConfig(answers=read_vocabulary(out / "answers.txt"))
    row: QuestionExample = task.read(samples(out, "train")[3000], processor, RNG)
    assert "target" in row and row["target"].tolist() == pytest.approx([0.9, 0, 0])
    assert (row["question"].id, row["question"].kind) == (3000, "other")
    asked = task.read_question(samples(out, "test")[11000], processor, RNG)["question"]
    assert (asked.id, asked.target) == (11000, ())


def test_vqa_task_trains_on_vqav2(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(vqa(tmp_path / "vqa"), out, ONE)
    tiny = recipe(tmp_path / "tiny", images=8)
    task = VQAConfig(answers=read_vocabulary(out / "answers.txt"))
    data = replace(tiny.data, train=(str(out / "train-*.tar"), str(out / "trainable_val-*.tar")), batch_size=4)
    vqa_recipe = replace(tiny, task=task, data=data, run=Run(steps=2, log_every=1))
    loop.train((vqa_recipe,), tmp_path / "run")
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_missing_parts_of_vqav2_are_reported(tmp_path: Path) -> None:
    source = vqa(tmp_path / "vqa")
    for path in (*source.glob("*test*"), *source.glob("*val2014*")):
        path.unlink()
    said = printed(prepare(source, tmp_path / "out", ONE))
    assert "1 answers, the most common answer of 9 or more questions of train2014; the published 3,129 need" in said
    assert "missing: v2_OpenEnded_mscoco_val2014_questions.json, v2_OpenEnded_mscoco_test-dev2015" in said
    (source / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(ValueError, match=r"train2014_questions\.json exists without v2_mscoco_train2014_annot"):
        prepare(source, tmp_path / "b", ONE)
    annotations_json(source, "train2014", [{"question_id": 1, "answers": []}])
    with pytest.raises(ValueError, match=r"annotations\.json has an entry without 'multiple_choice_answer'"):
        prepare(source, tmp_path / "c", ONE)
    put(source / "v2_mscoco_train2014_annotations.json", '{"annotations": [')
    with pytest.raises(ValueError, match=r"annotations\.json is not a JSON file, or is truncated"):
        prepare(source, tmp_path / "d", ONE)


def test_custom_vocabulary_and_image_folder(tmp_path: Path) -> None:
    source = vqa(tmp_path / "vqa")
    (tmp_path / "elsewhere").mkdir()
    for name in ("train2014", "val2014", "test2015"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    mine = put(tmp_path / "mine.txt", "zebra\n")
    options = replace(ONE, answers=mine, images=tmp_path / "elsewhere")
    prepare(source, tmp_path / "out", options)
    assert list(samples(tmp_path / "out", "train")) == [3000, 3002]
    assert (tmp_path / "out" / "answers.txt").read_text() == "zebra\n"
    with pytest.raises(ValueError, match=r"answers was 'mine\.txt', is ''"):
        prepare(source, tmp_path / "out", replace(options, answers=None))


def test_a_wrong_image_folder_is_detected_among_other_problems(tmp_path: Path) -> None:
    source = tmp_path / "vqa"
    questions_json(source, "train2014", [ask(1000 + n) for n in range(400)])
    annotations_json(source, "train2014", [answer(1000 + n, "red" if n % 3 else f"{n}") for n in range(400)])
    with pytest.raises(ValueError, match=r"first 150 items .*--images.*COCO_train2014_000000000001\.jpg \(1001\)"):
        prepare(source, tmp_path / "out", ONE)


def test_resume_and_update_are_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, take = vqa(tmp_path / "vqa"), tmp_path / "out", prepared_folder.PreparedFolder.add
    options = replace(ONE, shard_samples=4)
    prepare(source, tmp_path / "whole", options)

    def interrupt(self: prepared_folder.PreparedFolder, item: Item, outcome: object) -> None:
        take(self, item, outcome)  # type: ignore[arg-type]
        if self.tally.consumed == 31:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepared_folder, "SAVE_EVERY", 7)
        patch.setattr(prepared_folder.PreparedFolder, "add", interrupt)
        prepare(source, out, options)
    assert json.loads((out / "progress.json").read_text())["consumed"] == 28
    first = prepare(source, out, options)
    assert shards(out) == shards(tmp_path / "whole")
    (out / "answers.txt").unlink()
    assert prepare(source, out, options).tally == first.tally
    assert shards(out) == shards(tmp_path / "whole")
    path = source / "v2_mscoco_val2014_annotations.json"
    put(path, path.read_text().replace('"two"', '"three"'))
    prepare(source, out, options)
    prepare(source, tmp_path / "fresh", options)
    assert shards(out) == shards(tmp_path / "fresh") != shards(tmp_path / "whole")


def genome(root: Path) -> Path:
    def qa(number: int, image: int, question: str, answer: str) -> dict[str, object]:
        objects = [{"object_id": 1, "synsets": ["a.n.01"], "names": ["a"]}]
        return {"qa_id": number, "image_id": image, "question": question, "answer": answer, "a_objects": objects}

    content = [
        {"id": 1, "qas": [qa(10, 1, "What colour?", "Red."), qa(11, 1, "What colour?", "The red."),
                          qa(12, 1, "Who?", "A man."), qa(13, 1, "Is it?", "Yes."), qa(14, 1, "Is it?", "No.")]},
        {"id": 2, "qas": [qa(20, 2, "Who?", "Nobody."), qa(21, 2, "Who?", "Red."), qa(22, 2, "When?", "red")]},
        {"id": 3, "qas": [qa(30, 3, "What?", "red")]},
        {"id": 4, "qas": []},
    ]  # fmt: skip
    data = [
        {"image_id": 1, "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg", "coco_id": None},
        {"image_id": 2, "url": "https://cs.stanford.edu/people/rak248/VG_100K/2.jpg", "coco_id": 77},
        {"image_id": 3, "url": "https://cs.stanford.edu/people/rak248/VG_100K/3.jpg", "coco_id": None},
    ]
    put(root / "VG_100K_2" / "1.jpg", png_image(1)), put(root / "images" / "VG_100K" / "2.jpg", png_image(2))
    put(root / "image_data.json", data)
    return put(root / "question_answers.json", content)


def test_visual_genome(tmp_path: Path, processor: Processor) -> None:
    source, out = genome(tmp_path / "vg"), tmp_path / "out"
    assert recognize(source) == recognize(source.parent) == ("visual-genome", source)
    with pytest.raises(ValueError, match=r"give --answers answers\.txt"):
        prepare(source, out, ONE)
    known = replace(ONE, answers=put(tmp_path / "answers.txt", "red\nyes\nno\n"))
    prepare(source, out, known)
    assert list(samples(out, "train")) == [10] and list(samples(out, "train_coco")) == [21, 22]
    unknown = "its answer is not in the vocabulary"
    assert skipped(out) == {
        11: "the same text about the same image came before", 12: unknown, 13: "it has several answers",
        14: "it has several answers", 20: unknown, 30: "missing image",
    }  # fmt: skip
    assert samples(out, "train_coco")[21].meta["coco_id"] == 77
    row = VQAConfig(answers=("no", "red")).read(samples(out, "train")[10], processor, RNG)
    assert "target" in row and row["target"].tolist() == [0, 1]
    source.with_name("image_data.json").unlink()
    said = printed(prepare(source.parent, tmp_path / "b", known))
    assert "missing: image_data.json" in said and set(samples(tmp_path / "b", "train")) == {10, 21, 22}


def nlvr2(root: Path) -> Path:
    def row(identifier: str, sentence: str, label: object, **more: object) -> dict[str, object]:
        return {"sentence": sentence, "left_url": "http://a/b.jpg", "identifier": identifier, "label": label} | more

    data = root / "nlvr2" / "data"
    rows = [row(f"train-7-{n}-0", "a red cat", str(n == 0), directory=39) for n in (0, 1)]
    more = [row("train-7-0-1", "a dog", "Maybe", directory=39), row("train-8-0-0", "a dog", "True", directory=40)]
    json_lines(data / "train.json", [*rows, *more, rows[0]])
    json_lines(data / "dev.json", [row("dev-1-0-0", "two dogs", "False"), row("dev-1-0-1", "two dogs", "False")])
    json_lines(data / "test1.json", [row("test1-1-0-0", "two dogs", "True"), ["no row"]])
    json_lines(data / "balanced" / "balanced_dev.json", [row("dev-1-0-0", "two dogs", "False")])
    for number in (0, 1):
        put(root / "images" / "train" / "39" / f"train-7-0-img{number}.png", png_image(number))
        put(root / "images" / "train" / "39" / f"train-7-1-img{number}.png", png_image(2 + number))
        put(root / "dev" / f"dev-1-0-img{number}.png", png_image(4 + number))
        put(root / "test1" / f"test1-1-0-img{number}.png", png_image(6 + number))
    put(root / "images" / "train" / "40" / "train-8-0-img0.png", png_image(8))  # its second one is not there
    return data


def test_nlvr2(tmp_path: Path, processor: Processor) -> None:
    source, out = nlvr2(tmp_path / "nlvr"), tmp_path / "out"
    assert recognize(source) == ("nlvr2", source)
    summary = prepare(source, out, ONE)
    first = samples(out, "train")["train-7-0-0"]
    assert (first.image, first.other_images, first.texts) == (png_image(0), (png_image(1),), ("a red cat",))
    assert [sample.meta["label"] for sample in samples(out, "train").values()] == ["True", "False"]
    assert set(samples(out, "val")) == {"dev-1-0-0", "dev-1-0-1"} and set(samples(out, "test1")) == {"test1-1-0-0"}
    reasons = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [(row.get("id", row["name"]), row["reason"]) for row in reasons] == [
        ("train-7-0-1", "its label is neither True nor False"), ("train-8-0-0", "missing image"),
        ("train-7-0-0", "its id came before"), ("test1.json:2", "unreadable row"),
    ]  # fmt: skip
    assert "train-8-0-img1.png" in reasons[1]["detail"]
    assert summary.tally.labels == {"True": 2, "False": 3}
    assert "2 labels: False 3, True 2" in printed(summary)
    assert summary.tally.noted == {"the same text about the same image came before": 1}
    row = NLVR2Config().read(samples(out, "train")["train-7-1-0"], processor, RNG)
    assert row["images"].shape == (2, 3, 32, 32) and "target" in row and row["target"].item() == 0
    one = source / "balanced" / "balanced_dev.json"
    assert recognize(one) == ("nlvr2", one)
    prepare(one, tmp_path / "one", replace(ONE, images=tmp_path / "nlvr"))
    assert set(samples(tmp_path / "one", "balanced_dev")) == {"dev-1-0-0"}


@pytest.mark.parametrize("spelling", ["Flickr30K_ID", "Flikr30kID"])
def test_snli_ve(tmp_path: Path, processor: Processor, spelling: str) -> None:
    def row(image: int, number: int, text: str, label: str) -> dict[str, object]:
        pair = f"{image}.jpg#{number}r1n"
        return {"gold_label": label, "pairID": pair, "sentence1": "no", "sentence2": text, spelling: str(image)}

    source, out = tmp_path / "snli_ve", tmp_path / "out"
    good = [row(1, 0, "a cat", "entailment"), row(1, 1, "a dog", "contradiction"), row(1, 2, "a cat", "neutral")]
    bad = [row(2, 0, "a cat", "-"), row(3, 0, "a cat", "neutral"), good[1], row(1, 4, "", "neutral")]
    json_lines(source / "snli_ve_train.jsonl", [*good, *bad])
    json_lines(source / "snli_ve_dev.jsonl", [row(2, 1, "a tree", "neutral")])
    json_lines(source / "snli_ve_test.jsonl", [row(2, 2, "a house", "neutral")])
    for number in (1, 2):
        put(tmp_path / "flickr30k-images" / f"{number}.jpg", png_image(number))
    assert recognize(source) == ("snli-ve", source)
    summary = prepare(source, out, ONE)
    assert list(samples(out, "train")) == ["1.jpg#0r1n", "1.jpg#1r1n", "1.jpg#2r1n"]
    assert list(samples(out, "val")) == ["2.jpg#1r1n"] and list(samples(out, "test")) == ["2.jpg#2r1n"]
    assert skipped(out) == {
        "2.jpg#0r1n": "its label is none of contradiction, neutral, entailment", "3.jpg#0r1n": "missing image",
        "1.jpg#1r1n": "its id came before", "1.jpg#4r1n": "no caption",
    }  # fmt: skip
    assert summary.tally.noted == {"the same text about the same image came before": 1}
    row_read = EntailmentConfig().read(samples(out, "train")["1.jpg#1r1n"], processor, RNG)
    assert "target" in row_read and row_read["target"].item() == 0 and row_read["question"].text == "a dog"
    one = source / "snli_ve_dev.jsonl"
    assert recognize(one) == ("snli-ve", one)


def tables(tmp_path: Path, rows: Sequence[dict[str, object]]) -> Iterator[Path]:
    header = list(rows[0])
    cells = [header, *([str(row[name]) for name in header] for row in rows)]
    yield put(tmp_path / "t.csv", "\n".join(map(",".join, cells)))
    yield put(tmp_path / "t.tsv", "\n".join(map("\t".join, cells)))
    yield json_lines(tmp_path / "t.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), tmp_path / "t.parquet")
    yield tmp_path / "t.parquet"


def test_a_table_with_labels(tmp_path: Path, processor: Processor) -> None:
    def row(number: int, photo: str, text: str, verdict: str) -> dict[str, object]:
        return {"id": number, "photo": photo, "says": text, "verdict": verdict}

    put(tmp_path / "a.jpg", png_image(1)), put(tmp_path / "b.jpg", png_image(2))
    rows = [row(1, "a.jpg", "a cat", "good"), row(2, "a.jpg", "a dog", "bad"), row(3, "b.jpg", "a cat", "good")]
    rows += [row(4, "a.jpg", "a cat", "good"), row(5, "a.jpg", "a cat", "bad"), row(6, "c.jpg", "a", "good")]
    rows += [row(7, "b.jpg", "a dog", ""), row(8, "b.jpg", "", "bad")]
    options = replace(ONE, image_column="photo", text_columns=("says",), label_column="verdict")
    for number, path in enumerate(tables(tmp_path, rows)):
        out = tmp_path / f"out{number}"
        summary = prepare(path, out, options)
        names = {str(name): sample for name, sample in samples(out, "train").items()}
        found = {name: (sample.texts[0], sample.meta["label"]) for name, sample in names.items()}
        assert found == {"1": ("a cat", "good"), "2": ("a dog", "bad"), "3": ("a cat", "good"), "5": ("a cat", "bad")}
        assert {str(name): reason for name, reason in skipped(out).items()} == {
            "4": "the same row came before", "6": "missing image", "7": "no label", "8": "no caption",
        }  # fmt: skip
        assert summary.tally.labels == {"good": 2, "bad": 2}
        assert summary.tally.noted == {"the same row came before with another label": 1}
        read = EntailmentConfig(labels=("bad", "good")).read(names["3"], processor, RNG)
        assert "target" in read and read["target"].item() == 1
    with pytest.raises(ValueError, match="no column 'judge'"):
        prepare(path, tmp_path / "no", replace(options, label_column="judge"))


def test_a_table_with_questions_and_answers(tmp_path: Path, processor: Processor) -> None:
    put(tmp_path / "a.jpg", png_image(1))
    rows = [{"image": "a.jpg", "text": "is it a cat", "said": ["no", "No", "yes"]}]
    prepare(json_lines(tmp_path / "t.jsonl", rows), tmp_path / "out", replace(ONE, label_column="said"))
    [sample] = Shards.open(tmp_path / "out")
    read = VQAConfig(answers=("yes", "no")).read(sample, processor, RNG)
    assert "target" in read and read["target"].tolist() == pytest.approx([2 / 9, 4 / 9])


@pytest.mark.parametrize(
    ("cell", "truth"),
    [
        (" 1 ", {"label": 1}), ("01", {"label": "01"}), (2.0, {"label": 2}), (True, {"label": True}), (0.5, {}),
        (None, {}), ("", {}), (["a", ""], {}), (float("nan"), {}), ("no", {"label": "no"}),
    ],
)  # fmt: skip
def test_labels_in_cells(cell: object, truth: dict[str, object]) -> None:
    assert parse_label(cell) == truth


def test_too_many_labels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualfuse.prepare.summary.MAX_LABELS", 2)
    put(tmp_path / "a.jpg", png_image(1))
    rows = [{"image": "a.jpg", "text": f"{n}", "price": n} for n in range(3)]
    with pytest.raises(ValueError, match="more than 2 different labels"):
        prepare(json_lines(tmp_path / "t.jsonl", rows), tmp_path / "out", replace(ONE, label_column="price"))


def test_karpathy_finds_flickr30k_beside_it(tmp_path: Path) -> None:
    put(tmp_path / "flickr30k-images" / "1.jpg", png_image(1))
    entry = {"filename": "1.jpg", "split": "test", "imgid": 0, "sentids": [0], "sentences": [{"raw": "A cat."}]}
    source = put(tmp_path / "karpathy" / "dataset_flickr30k.json", {"images": [entry], "dataset": "flickr30k"})
    prepare(source, tmp_path / "out", ONE)
    assert [sample.texts for sample in Shards.open(tmp_path / "out" / "test-*.tar")] == [("A cat.",)]


def test_several_data_sets_and_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    source = vqa(tmp_path / "vqa")
    with pytest.raises(ValueError, match="--image, --text, --label and --split-column are for tables"):
        prepare(source, tmp_path / "out", replace(ONE, label_column="a"))
    with pytest.raises(ValueError, match="--answers is for VQAv2"):
        prepare(nlvr2(tmp_path / "nlvr"), tmp_path / "out", replace(ONE, answers=put(tmp_path / "a.txt", "a")))
    genome(source)
    with pytest.raises(ValueError, match="several data sets: vqav2, visual-genome; put each into a folder"):
        recognize(source)
    squad = put(tmp_path / "squad.json", {"data": [{"paragraphs": [{"qas": []}]}]})
    with pytest.raises(ValueError, match="not a known JSON format"):
        recognize(squad)


def test_folders_of_older_versions_are_complete(tmp_path: Path) -> None:
    put(tmp_path / "mine" / "a.jpg", png_image(1)), put(tmp_path / "mine" / "a.txt", "a cat")
    prepare(tmp_path / "mine", tmp_path / "out", ONE)
    content = json.loads((tmp_path / "out" / "prepared.json").read_text())
    for name in ("labels", "noted", "noted_examples", "remarks"):
        del content[name]
    del content["request"]["label_column"], content["request"]["answers"]
    put(tmp_path / "out" / "prepared.json", content)
    assert prepare(tmp_path / "mine", tmp_path / "out", ONE).tally.samples == 1
    with pytest.raises(ValueError, match="longest_side was 0, is 9"):
        prepare(tmp_path / "mine", tmp_path / "out", replace(ONE, longest_side=9))
