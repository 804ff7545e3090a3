"""Predictions against the same computed by other ways."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import BRIDGETOWER as TINY_TOWERS
from tiny import MODEL, png_image, shards, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from dualfuse import hub
from dualfuse.cli import main as cli
from dualfuse.cli import predict as predict_command
from dualfuse.cli.predict import TableOptions
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.tokenizer import TextTransform, load_tokenizer
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.inference.predict import predict
from dualfuse.inference.table import predict_table
from dualfuse.models.base import ModelConfig
from dualfuse.models.vlmo import InitConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.segmentation import SegmentationConfig
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.fill_mask import read_masked
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig
from dualfuse.tasks.pretrain.masked_text import MaskedText, MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

VLMO = replace(MODEL, image_slots=2, drop_path=0.0, init=InitConfig(std=0.3, layer_scale=0.0))
BRIDGETOWER = replace(TINY_TOWERS, image_slots=2, init_std=0.3)
ANSWERS = ("red", "blue", "2", "cat")
QUESTION = "the red cat sleeps"


def saved(folder: Path, task: TaskConfig, model: ModelConfig = VLMO) -> hub.LoadedModel:
    """Save and load a model with random weights, whose outputs differ for every input."""
    torch.manual_seed(0)
    data = Data(image_size=(32, 32), text_length=12, tokenizer=tokenizer(folder / "words"))
    recipe = Recipe(name="tiny", model=model, task=task, data=data)
    hub.save(folder / "model", recipe.task.build(model.build()), recipe)
    return hub.load(folder / "model")


@pytest.mark.parametrize("model", [VLMO, BRIDGETOWER], ids=["vlmo", "bridgetower"])
@pytest.mark.parametrize(
    "task", [VQAConfig(answers=ANSWERS), NLVR2Config(), EntailmentConfig(labels=("bad", "fine", "so"))]
)
def test_answers_equal_those_of_evaluation(tmp_path: Path, task: TaskConfig, model: ModelConfig) -> None:
    loaded = saved(tmp_path, task, model)
    number = 2 if isinstance(task, NLVR2Config) else 1
    samples = [
        Sample(f"{n}", png_image(n), (QUESTION,), other_images=(png_image(n + 9),)[: number - 1]) for n in range(4)
    ]
    evaluated = loaded.task.evaluate(
        EvaluationData(Shards.open(shards(tmp_path, samples)), loaded.processor), Plan(num_workers=0)
    )
    for sample, answer in zip(samples, evaluated.predictions, strict=True):
        images = (sample.image, *sample.other_images)
        answers = predict(loaded, images if number == 2 else images[0], QUESTION, top=2).answers
        assert len(answers) == 2
        assert answers[0].probability > answers[1].probability
        assert (answers[0].answer, answers[0].probability) == (
            answer.answer,
            pytest.approx(answer.probability, abs=1e-6),
        )


def test_match_and_cosine_by_definition(tmp_path: Path) -> None:
    loaded = saved(tmp_path, PairsConfig())
    task = loaded.task
    assert isinstance(task, Pairs)
    prediction = predict(loaded, png_image(1), QUESTION)
    with torch.inference_mode():
        image = task.model.embed_image(loaded.processor.image(png_image(1), np.random.default_rng())[None])
        ids = torch.from_numpy(loaded.processor.text.encode(QUESTION).ids)[None]
        text = task.model.embed_text(ids, torch.ones_like(ids).bool())
        match = task.itm_head(task.model.fuse(image, text).pooled).softmax(1)[0, 1]
        one, other = (
            task.feature_heads[0].image(task.model.encode(image)),
            task.feature_heads[0].text(task.model.encode(text)),
        )
    assert prediction.match == pytest.approx(match.item(), abs=1e-5)
    assert prediction.cosine == pytest.approx(torch.cosine_similarity(one, other)[0].item(), abs=1e-5)
    assert not (prediction.answers or prediction.words or prediction.filled)


def test_untrained_heads_predict_nothing(tmp_path: Path) -> None:
    only_contrast = predict(saved(tmp_path / "a", PairsConfig(itm_weight=0)), png_image(1), QUESTION)
    assert only_contrast.match is None
    assert only_contrast.cosine is not None
    only_match = predict(saved(tmp_path / "b", PairsConfig(itc_weight=0)), png_image(1), QUESTION)
    assert only_match.match is not None
    assert only_match.cosine is None


def test_masks_are_filled_with_and_without_image(tmp_path: Path) -> None:
    """Compare two masks with the states of all positions, for ids made by hand."""
    loaded = saved(tmp_path / "pairs", PairsConfig())
    vocabulary = load_tokenizer(loaded.processor.text.tokenizer).tokenizer.get_vocab()
    names = ["[CLS]", "the", "[MASK]", "cat", "[MASK]", "[SEP]"]
    ids = torch.tensor([[vocabulary[name] for name in names]])
    task = loaded.task
    assert isinstance(task, Pairs)
    with torch.inference_mode():
        image = task.model.embed_image(loaded.processor.image(png_image(1), np.random.default_rng())[None])
        text = task.model.embed_text(ids, torch.ones_like(ids).bool())
        logits = task.mlm_head(task.model.fuse(image, text).text[0, [2, 4]])
    check_words(loaded, predict(loaded, png_image(1), "the [MASK] cat [MASK]", top=3).words, logits)

    alone = saved(tmp_path / "text", MaskedTextConfig())
    assert isinstance(alone.task, MaskedText)
    with torch.inference_mode():
        text = alone.task.model.embed_text(ids, torch.ones_like(ids).bool())
        logits = alone.task.mlm_head(alone.task.model.token_states(text, torch.tensor([[2, 4]]))[0])
    prediction = predict(alone, text="the <mask> cat [mask]", top=3)
    check_words(alone, prediction.words, logits)
    assert prediction.filled == f"the {prediction.words[0][0].answer} cat {prediction.words[1][0].answer}"


def check_words(loaded: hub.LoadedModel, words: Sequence[Sequence[object]], logits: torch.Tensor) -> None:
    vocabulary = load_tokenizer(loaded.processor.text.tokenizer).tokenizer
    allowed = [
        n
        for n in range(vocabulary.get_vocab_size())
        if vocabulary.id_to_token(n) not in ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
    ]
    for guesses, row in zip(words, logits[:, allowed].softmax(1), strict=True):
        best = row.argsort(descending=True)[:3].tolist()
        assert [guess.answer for guess in guesses] == [vocabulary.id_to_token(allowed[n]) for n in best]
        assert [guess.probability for guess in guesses] == pytest.approx(row[best].tolist(), abs=1e-6)


def test_roberta_mask_includes_the_space_before_it(tmp_path: Path) -> None:
    names = ["<s>", "</s>", "<pad>", "<mask>", "a", "Ġ", "c"]
    made = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(tmp_path / "tokenizer.json"))
    blanks = read_masked("a <mask> c", TextTransform(9, str(tmp_path / "tokenizer.json")))
    assert blanks.ids.tolist() == [0, 4, 3, 5, 6, 1]
    assert blanks.positions.tolist() == [2]


@pytest.mark.parametrize(
    ("task", "image", "text", "message"),
    [
        (VQAConfig(answers=ANSWERS), None, QUESTION, "no image"),
        (VQAConfig(answers=ANSWERS), png_image(1), " ", "no text"),
        (VQAConfig(answers=ANSWERS), (png_image(1), png_image(2)), QUESTION, "2 images are given, .* takes 1"),
        (VQAConfig(answers=ANSWERS), b"GIF", QUESTION, "not an image in one of the formats"),
        (NLVR2Config(), png_image(1), QUESTION, "1 images of the 2"),
        (PairsConfig(), png_image(1), "", "no text"),
        (PairsConfig(mlm_weight=0), png_image(1), "a [MASK]", "without MLM"),
        (PairsConfig(itm_weight=0, itc_weight=0), png_image(1), QUESTION, "only fills masks"),
        (PairsConfig(), png_image(1), "a " * 10 + "[MASK]", "token 11 .* reads 10"),
        (MaskedTextConfig(), png_image(1), "a [MASK]", "takes no image"),
        (MaskedTextConfig(), None, "a", "put .MASK."),
        (
            SegmentationConfig(labels=("sky", "sea"), feature_layers=(1, 2, 2, 2)),
            png_image(1),
            "",
            "class of every pixel.* --save-image",
        ),
        (MaskedImageConfig(), png_image(1), "", "a MaskedImage model predicts nothing"),
    ],
)
def test_unsupported_input_is_refused(tmp_path: Path, task: TaskConfig, image: object, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(saved(tmp_path, task), image, text)


def test_truncated_text_is_reported(tmp_path: Path) -> None:
    loaded = saved(tmp_path, VQAConfig(answers=ANSWERS))
    assert predict(loaded, png_image(1), "a " * 11).is_cut
    assert not predict(loaded, png_image(1), "a " * 10).is_cut


def table(folder: Path, number: int = 9) -> Path:
    """Write a table whose last rows name a missing image, no text, and too few cells; image 4 is damaged."""
    for n in range(number):
        (folder / f"{n}.png").write_bytes(png_image(n))
    (folder / "4.png").write_bytes(png_image(4)[:60])
    with (folder / "questions.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["id", "image", "question"])
        write.writerows([100 + n, f"{n}.png", f"{QUESTION} " * (1 + n % 2)] for n in range(number))
        write.writerow([200, "none.png", QUESTION])
        write.writerow([201, "1.png", ""])
        file.write("202,1.png\n")
    return folder / "questions.csv"


@pytest.mark.parametrize("task", [VQAConfig(answers=ANSWERS), PairsConfig()])
def test_table_predictions_equal_those_of_single_rows(tmp_path: Path, task: TaskConfig) -> None:
    """Batches of four mix texts of two lengths, and broken rows with good ones."""
    loaded = saved(tmp_path, task)
    answers = list(predict_table(loaded, table(tmp_path), top=2, batch_size=4, num_workers=2))
    assert [answer.row for answer in answers] == list(range(1, 13))
    problems = {answer.row: answer.problem for answer in answers if answer.prediction is None}
    assert set(problems) == {5, 10, 11, 12}
    assert "cannot be decoded" in problems[5]
    assert problems[10] == f"missing image: {tmp_path / 'none.png'}"
    assert "no text" in problems[11]
    assert answers[9].inputs == {"id": "200", "image": "none.png", "text": QUESTION}
    assert problems[12].startswith("unreadable row: line 13: 2 cells")
    for answer in answers:
        if answer.prediction is None:
            continue
        alone = predict(loaded, tmp_path / str(answer.inputs["image"]), str(answer.inputs["text"]), top=2)
        assert flat(answer.prediction.record()) == pytest.approx(flat(alone.record()), abs=1e-5)
        assert answer.inputs["id"] == str(99 + answer.row)


def flat(record: dict[str, object]) -> dict[str, object]:
    guesses = record.pop("answers", [])
    return record | {guess["answer"]: guess["probability"] for guess in guesses}


def test_texts_with_and_without_masks_in_one_table(tmp_path: Path) -> None:
    loaded = saved(tmp_path, PairsConfig())
    (tmp_path / "a.png").write_bytes(png_image(1))
    texts = ("the [MASK] cat", QUESTION, "a [MASK] [MASK]")
    lines = [json.dumps({"image": "a.png", "text": text}) for text in texts]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    predictions = [answer.prediction for answer in predict_table(loaded, tmp_path / "t.jsonl", batch_size=8)]
    assert [len(each.words) for each in predictions if each] == [1, 0, 2]
    for each, text in zip(predictions, texts, strict=True):
        alone = predict(loaded, tmp_path / "a.png", text)
        assert each is not None
        assert (each.filled, each.match is None) == (alone.filled, alone.match is None)


def test_two_images_in_a_table(tmp_path: Path) -> None:
    loaded = saved(tmp_path, NLVR2Config(), BRIDGETOWER)
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(png_image(n))
    (tmp_path / "t.csv").write_text(f"image,image_2,text\n0.png,1.png,{QUESTION}\n0.png,,{QUESTION}\n")
    good, bad = predict_table(loaded, tmp_path / "t.csv")
    assert good.prediction is not None
    assert good.prediction.answers[0] == predict(loaded, (png_image(0), png_image(1)), QUESTION).answers[0]
    assert "1 images of the 2" in bad.problem


def test_images_inside_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = {"image": [{"bytes": png_image(1), "path": None}, None], "text": [QUESTION, QUESTION]}
    parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    loaded = saved(tmp_path, VQAConfig(answers=ANSWERS))
    first, second = predict_table(loaded, tmp_path / "t.parquet")
    assert first.prediction == predict(loaded, png_image(1), QUESTION)
    assert "no image" in second.problem


def test_table_that_prepare_takes_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of images, other columns, another encoding, images in cells, and names that are only similar."""
    loaded = saved(tmp_path, VQAConfig(answers=ANSWERS))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "A.PNG").write_bytes(png_image(1))
    uri = f"data:image/png;base64,{base64.b64encode(png_image(1)).decode()}"
    rows = [("a.png", "café", "x"), (uri, "café", "x"), ("gone.png", "café", ""), ("a.png", "", "")]
    lines = ["photo;says;more", *(";".join(f'"{cell}"' for cell in row) for row in rows)]
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode("cp1252"))
    flags = ("--images", tmp_path / "images", "--image-column", "photo", "--text-columns", "says", "more")
    flags = (*flags, "--encoding", "cp1252")
    assert cli.main(["predict", str(tmp_path / "model"), "--table", str(tmp_path / "t.csv"), *map(str, flags)]) == 0
    named, embedded, gone, silent = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (named["image"], named["text"]) == ("a.png", "café\nx")
    expected = predict(loaded, png_image(1), "café\nx").answers[0]
    for line in (named, embedded):
        assert line["answers"][0] == {"answer": expected.answer, "probability": pytest.approx(expected.probability)}
    assert "image" not in embedded
    assert "gone.png" in gone["problem"] and "no text" in silent["problem"]
    assert cli.main(["predict", str(tmp_path / "model"), "--text", "a", "--images", str(tmp_path)]) == 2
    assert (
        cli.main(["predict", str(tmp_path / "model"), "--table", str(tmp_path / "t.csv"), "--encoding", "cp1252"]) == 2
    )
    assert "--image-column" in capsys.readouterr().err


def test_table_without_any_usable_row_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, VQAConfig(answers=ANSWERS))
    (tmp_path / "t.csv").write_text("image,text\nnone.png,=1+1\na,b,c\n")
    command = ["predict", str(tmp_path / "model"), "--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "a.csv")]
    assert cli.main(command) == 1
    assert "0 rows answered, 2 unusable" in capsys.readouterr().err
    with (tmp_path / "a.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["text"] == "'=1+1" and "none.png" in first["problem"] and second["problem"]


def test_kept_columns_are_copied_to_the_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, VQAConfig(answers=ANSWERS))
    (tmp_path / "a.png").write_bytes(png_image(1))
    (tmp_path / "t.csv").write_text(f"sku,answer,image,text\nA-1,=9,a.png,{QUESTION}\nB-2,,gone.png,{QUESTION}\n")
    command = ["predict", str(tmp_path / "model"), "--table", str(tmp_path / "t.csv"), "--keep", "sku"]
    assert cli.main([*command, "answer"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["keep"] for line in lines] == [{"sku": "A-1", "answer": "=9"}, {"sku": "B-2", "answer": ""}]
    assert cli.main([*command, "answer", "--out", str(tmp_path / "a.csv")]) == 0
    with (tmp_path / "a.csv").open() as file:
        good, bad = csv.DictReader(file)
    assert (good["keep.sku"], good["keep.answer"], good["answer"] in ANSWERS) == ("A-1", "'=9", True)
    assert bad["keep.sku"] == "B-2" and "gone.png" in bad["problem"]
    assert cli.main([*command, "price"]) == 2
    assert "no column 'price'" in capsys.readouterr().err


def test_paths_inside_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (tmp_path / "a.png").write_bytes(png_image(1))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"image": {"bytes": None, "path": "a.png"}, "text": QUESTION}]
    schema = pa.schema([("image", kind), ("text", pa.string())])
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "t.parquet")
    loaded = saved(tmp_path, VQAConfig(answers=ANSWERS))
    (row,) = predict_table(loaded, tmp_path / "t.parquet")
    assert row.prediction == predict(loaded, png_image(1), QUESTION)


def run(model: Path, **options: Any) -> int:
    """Run the command with options, some of which are those of a table."""
    rows = {each.name: options.pop(each.name) for each in fields(TableOptions) if each.name in options}
    return predict_command.run(predict_command.Options(str(model), rows=TableOptions(**rows), **options))


def test_command_predicts_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, VQAConfig(answers=ANSWERS))
    questions = table(tmp_path)
    for name in ("out.jsonl", "out.csv"):
        run(tmp_path / "model", table=questions, out=tmp_path / name, top=3, batch_size=5)
        assert "8 rows answered, 4 unusable" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(lines) == len(rows) == 12
    for line, row in zip(lines, rows, strict=True):
        assert ("problem" in line) == bool(row["problem"])
        if "answers" in line:
            assert len(line["answers"]) == 3
            assert row["answer"] == line["answers"][0]["answer"]
            assert float(row["probability"]) == line["answers"][0]["probability"]
    run(tmp_path / "model", table=questions)
    assert [json.loads(line)["row"] for line in capsys.readouterr().out.splitlines()] == list(range(1, 13))


def test_command_predicts_one_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = saved(tmp_path, VQAConfig(answers=ANSWERS))
    (tmp_path / "a.png").write_bytes(png_image(1))
    run(tmp_path / "model", image=(tmp_path / "a.png",), text=QUESTION, top=1)
    best = predict(loaded, png_image(1), QUESTION).answers[0]
    assert capsys.readouterr().out == f"{100 * best.probability:6.1f} %  {best.answer}\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"table": "questions.csv", "text": "a"}, "leave out --image"),
        ({"out": "a.csv"}, "give --table"),
        ({"table": "gone.csv"}, "does not exist"),
        ({"table": "questions.csv", "out": "questions.csv"}, "replace the table"),
        ({"table": "questions.csv", "out": "a.txt"}, "should end in"),
        ({"table": "empty.csv"}, "has no rows"),
        ({"table": "other.csv"}, "no column called image"),
        ({"text": "a", "top": 0}, "top is 0"),
        ({"table": "questions.csv", "batch_size": 0}, "batch_size is 0"),
        ({"text": "a", "text_columns": ("a",)}, "are for --table"),
    ],
)
def test_command_refuses_invalid_options(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    saved(tmp_path, VQAConfig(answers=ANSWERS))
    table(tmp_path)
    (tmp_path / "empty.csv").write_text("image,text\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    paths = {name: tmp_path / str(value) for name, value in wrong.items() if name in ("table", "out")}
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "model", **(wrong | paths))


def test_image_rotated_by_exif_is_read_upright(tmp_path: Path) -> None:
    loaded = saved(tmp_path, PairsConfig())
    upright = Image.open(io.BytesIO(png_image(3)))
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 3  # upside down
    upright.rotate(180).save(turned, "PNG", exif=exif)
    assert predict(loaded, turned.getvalue(), QUESTION) == predict(loaded, png_image(3), QUESTION)
