"""Text classification reads GLUE's published tables, encodes pairs as transformers does, and learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import BRIDGETOWER, recipe, tokenizer
from tokenizers import Tokenizer, processors

from dualfuse import hub, recipes
from dualfuse.data.sample import BrokenSample
from dualfuse.data.text.labeled import LabeledTexts
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan, evaluate
from dualfuse.inference.predict import predict
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.tasks.finetune.text_classification import TextClassificationConfig
from dualfuse.training.loop import train
from dualfuse.training.run_log import read_log

LAYOUTS = {
    "CoLA/dev.tsv": 'gj04\t1\t\tThe sailors rode the breeze "clear.\ngj04\t0\t*\tThem ran.\n',
    "CoLA/test.tsv": "index\tsentence\n0\tBill ran.\n",
    "SST-2/train.tsv": "sentence\tlabel\nhide new secretions \t0\na gorgeous film \t1\n",
    "MRPC/dev.tsv": 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t12\t34\tHe said "no.\tHe denied it.\n',
    "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n7\t1\t2\tWhy?\tWhy not?\t0\nbroken\t1\n",
    "STS-B/dev.tsv": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "3\tnews\tx\t2012\t1\tnone\tnone\tA dog runs.\tA cat sits.\t1.250\n"
    ),
    "MNLI/dev_matched.tsv": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n"
        "0\t1\t1e\tfiction\t( a )\t( b )\t(A)\t(B)\tIt rained.\tIt was wet.\tneutral\tentailment\tentailment\n"
    ),
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\tWhat is it?\tIt is a test.\tnot_entailment\n",
    "own.jsonl": '{"text": "good", "label": "positive"}\n[1]\n',
}
"""Published files of GLUE, with rows of their form."""
READ = {
    "CoLA/dev.tsv": [('The sailors rode the breeze "clear.', 1), ("Them ran.", 0)],
    "CoLA/test.tsv": [("Bill ran.", None)],
    "SST-2/train.tsv": [("hide new secretions ", 0), ("a gorgeous film ", 1)],
    "MRPC/dev.tsv": [('He said "no.', "He denied it.", 1)],
    "QQP/train.tsv": [("Why?", "Why not?", 0), None],
    "STS-B/dev.tsv": [("A dog runs.", "A cat sits.", "1.250")],
    "MNLI/dev_matched.tsv": [("It rained.", "It was wet.", "entailment")],
    "QNLI/dev.tsv": [("What is it?", "It is a test.", "not_entailment")],
    "own.jsonl": [("good", "positive"), None],
}
"""Texts and label of each row; None: it is broken."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_tables(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(LAYOUTS[name], encoding="utf-8")
    rows = LabeledTexts.open(path)
    assert len(rows) == len(READ[name])
    for number, expected in enumerate(READ[name]):
        if expected is None:
            with pytest.raises(BrokenSample):
                rows[number]
        else:
            assert (*rows[number].texts, rows[number].meta.get("label")) == expected


def test_other_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.tsv").write_text("name\tage\nx\t3\n", encoding="utf-8")
    with pytest.raises(DualfuseError, match=r"columns name, age; one of sentence1 and sentence2"):
        LabeledTexts.open(tmp_path / "other.tsv")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_pairs_are_encoded_as_in_the_library(kind: str, tmp_path: Path) -> None:
    """Also where the longer text has to be cut; the first tokens of RoBERTa are those of BERT under other names."""
    path = Path(tokenizer(tmp_path))
    start, end = ("[CLS]", "[SEP]") if kind == "bert" else ("<s>", "</s>")
    if kind == "roberta":
        content = path.read_text(encoding="utf-8")
        for old, new in {"[CLS]": "<s>", "[SEP]": "</s>", "[PAD]": "<pad>", "[MASK]": "<mask>"}.items():
            content = content.replace(old, new)
        path.write_text(content, encoding="utf-8")
    library = Tokenizer.from_file(str(path))
    special = ((end, library.token_to_id(end)), (start, library.token_to_id(start)))
    processing = processors.BertProcessing if kind == "bert" else processors.RobertaProcessing
    library.post_processor = processing(*special)
    for length in (30, 10, 7):
        library.enable_truncation(length, strategy="longest_first")
        for words in (("a red cat sleeps the dog runs", "the big tree"), ("a cat", "the big tree runs a red fish")):
            assert TextTransform(length, str(path)).encode_pair(words).tolist() == library.encode(*words).ids


@pytest.mark.parametrize(("classes", "metric"), [(2, "matthews_correlation"), (1, "spearman")])
def test_training_and_evaluation(classes: int, metric: str, tmp_path: Path) -> None:
    """The first text names the cat or the dog; the label is which, or how many words there are."""
    labels = [n % 2 if classes == 2 else n % 5 for n in range(40)]
    rows = [
        {"sentence1": f"the {('cat', 'dog')[n % 2]} runs", "sentence2": "a " * (n % 5 + 1), "label": label}
        for n, label in enumerate(labels)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    made = recipe(tmp_path, images=1)
    task = TextClassificationConfig(num_classes=classes, dropout=0.0)
    data = replace(made.data, train=(str(path),), validation=str(path), batch_size=20, num_workers=0)
    run = (
        replace(made.run, steps=0, epochs=40, eval_epochs=20, best=metric, save_every=100)
        if False
        else replace(made.run, steps=1, epochs=40, eval_epochs=20, best=metric, save_every=100)
    )
    optim = replace(made.optim, lr=3e-3, warmup=0.1)
    final = train([replace(made, model=BRIDGETOWER, task=task, data=data, run=run, optim=optim)], tmp_path / "run")
    assert read_log(tmp_path / "run")[-1][f"validation/{metric}"] > 0.9
    model = hub.load(final)
    found = evaluate(model, str(path), Plan(num_workers=0))
    assert found.size == "40 questions, 40 of them labelled" and found.metrics[metric] > 0.9
    answer = predict(model, text="the dog runs\ta a").answers[0]
    assert answer.answer == "1" if classes == 2 else abs(float(answer.answer) - 1) < 1
    with pytest.raises(DualfuseError, match="omit the image"):
        model.task.read_input(replace(LabeledTexts.open(path)[0], image=b"x"), model.processor)


@pytest.mark.parametrize("name", [name for name in recipes.NAMES if name.startswith(("glue-", "cifar"))])
def test_recipes_build(name: str) -> None:
    [found] = recipes.find_recipe(name)
    assert isinstance(found.model, BridgeTowerConfig) and found.model.image.image_size == found.data.image_size
    names = [info.name for info in found.task.metrics(Plan())]
    assert found.run.best in names and found.run.epochs == 10
    assert found.data.text_length <= found.model.text.text_length
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in found.build().parameters()) > 1e8
