"""Model cards: what they say is true of the folder, and what a person wrote is never lost."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny import MODEL, recipe

from dualfuse import hub
from dualfuse.card import Scores, card, write_card
from dualfuse.errors import DualfuseError
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig

METER = BridgeTowerConfig(
    image=CLIPViTConfig(width=64, depth=1, patch_size=16, image_size=(32, 32)),
    text=RobertaConfig(width=64, depth=1, heads=2, feed_forward=64, vocab_size=MODEL.vocab_size, text_length=12),
    width=32,
    heads=2,
    feed_forward=64,
    layers=1,
    bridge="none",
)


def saved(folder: Path, recipe: Recipe) -> int:
    """Return the number of parameters, counted by torch."""
    task = recipe.build()
    hub.save(folder, task, recipe)
    return sum(parameter.numel() for parameter in task.parameters())


@pytest.fixture
def pairs(tmp_path: Path) -> Recipe:
    return recipe(tmp_path, images=2)


def test_hub_reads_the_front_matter(tmp_path: Path, pairs: Recipe) -> None:
    number = saved(tmp_path / "final", pairs)
    read = ModelCard(card(tmp_path / "final", licence="apache-2.0"))
    assert read.data.to_dict() == {
        "library_name": "dualfuse",
        "pipeline_tag": "feature-extraction",
        "license": "apache-2.0",
        "tags": ["dualfuse", "vision-language", "vlmo", "pairs"],
    }
    assert f"| parameters | {number:,}, heads included |" in read.text
    assert "ITC 1.0, ITM 1.0, MLM 0.25" in read.text
    assert "width 32, depth 2" in read.text
    assert "| at most 12 tokens; vocabulary of 19 |" in read.text
    assert ModelCard(card(tmp_path / "final")).data.license == "unknown"


def test_private_paths_are_shortened(tmp_path: Path, pairs: Recipe) -> None:
    saved(tmp_path / "final", pairs)
    assert str(tmp_path) in (tmp_path / "final" / hub.CONFIG).read_text()
    text = card(tmp_path / "final")
    assert str(tmp_path) not in text
    assert "| tiny | Pairs | 10 | 8 | `data/train-*.tar` |" in text


@pytest.mark.parametrize(
    ("task", "tag"), [(VQAConfig(num_answers=3), "visual-question-answering"), (NLVR2Config(), None)]
)
def test_other_heads_and_models(tmp_path: Path, pairs: Recipe, task: object, tag: str | None) -> None:
    saved(tmp_path / "final", replace(pairs, model=METER, task=task))
    read = ModelCard(card(tmp_path / "final"))
    assert read.data.get("pipeline_tag") == tag
    assert "METER ([arXiv 2111.02387]" in read.text
    assert ('image=("a.jpg", "b.jpg")' in read.text) == isinstance(task, NLVR2Config)


def test_stages_are_listed_in_order(tmp_path: Path, pairs: Recipe) -> None:
    """The start.json of each run is where training writes it: beside its final folder."""
    stages = (
        replace(pairs, name="text", task=MaskedTextConfig(), start_from="owner/beit"),
        replace(pairs, name="pairs", start_from="text"),
        replace(pairs, name="answers", task=VQAConfig(num_answers=3), start_from="pairs"),
    )
    source = "/somewhere/models--owner--beit"
    for stage in stages:
        saved(tmp_path / stage.name / "final", stage)
        (tmp_path / stage.name / "start.json").write_text(json.dumps({"source": source}))
        source = str(tmp_path / stage.name / "final")
    text = card(tmp_path / "answers" / "final")
    rows = [line.split(" | ")[:2] for line in text.splitlines() if "| 10 | 8 |" in line]
    assert rows == [["| text", "MaskedText"], ["| pairs", "Pairs"], ["| answers", "VQA"]]
    assert "It started from `owner/beit`." in text
    assert "- Weights it started from: *to be filled in*" in text


def test_model_that_started_from_itself_is_listed_once(tmp_path: Path, pairs: Recipe) -> None:
    saved(tmp_path / "final", pairs)
    (tmp_path / "start.json").write_text(json.dumps({"source": str(tmp_path / "final")}))
    assert card(tmp_path / "final").count("| 10 | 8 |") == 1


def test_scores_are_listed_with_their_command(tmp_path: Path, pairs: Recipe) -> None:
    saved(tmp_path / "final", pairs)
    numbers = {"text_to_image/R@1": 0.125, "validation/loss": 2.5, "words": float("nan")}
    (tmp_path / "scores.json").write_text(json.dumps(numbers))
    text = card(tmp_path / "final", Scores.read(tmp_path / "scores.json", "dualfuse evaluate a 'b-*.tar'"))
    assert "```bash\ndualfuse evaluate a 'b-*.tar'\n```" in text
    for row in ("| `text_to_image/R@1` | 12.5 % |", "| `validation/loss` | 2.500 |", "| `words` | nan |"):
        assert row in text
    assert "None yet" in card(tmp_path / "final")
    (tmp_path / "scores.json").write_text('["a"]')
    with pytest.raises(DualfuseError, match=r"scores.json"):
        Scores.read(tmp_path / "scores.json", "")


def test_card_of_a_converted_model_names_its_source(tmp_path: Path, pairs: Recipe) -> None:
    saved(tmp_path / "final", pairs)
    (tmp_path / "final" / "conversion.json").write_text(json.dumps({"source": "owner/name"}))
    assert "Converted from `owner/name`" in card(tmp_path / "final")


def test_edited_card_is_kept(tmp_path: Path, pairs: Recipe) -> None:
    folder = tmp_path / "final"
    saved(folder, pairs)
    write_card(folder)
    path = write_card(folder, licence="mit")  # what nobody touched is replaced
    assert "- Weights: mit" in path.read_text()
    path.write_text(path.read_text().replace("*to be filled in*", "our own images"))
    with pytest.raises(ValueError, match="edited by hand"):
        write_card(folder)
    assert "our own images" in path.read_text()
    hub.load(folder)  # a card is nothing to a loader


def test_names_from_outside_are_texts_of_the_card(tmp_path: Path, pairs: Recipe) -> None:
    saved(tmp_path / "final", pairs)
    config = json.loads((tmp_path / "final" / hub.CONFIG).read_text())
    evil = "x\n\n<script>alert(1)</script>\n## EVIL | `a` [b](c)\x1b"
    config |= {"name": evil, "start_from": evil, "train_only": [evil]}
    config["data"]["train"] = [f"a`{evil}"]
    (tmp_path / "final" / hub.CONFIG).write_text(json.dumps(config))
    text = card(tmp_path / "final", Scores({evil: 1.0}, f"a\n```\n{evil}"), licence=evil)
    blocks = text.split("```")
    assert len(blocks) == 5  # the command of the scores and the example of use
    prose = "".join(blocks[::2])
    spans = re.sub(r"`[^`\n]*`", "", prose.split("---\n", 2)[2])
    assert "<script>" not in spans and "\x1b" not in text
    headings = [line for line in prose.splitlines() if line.startswith("#")]
    assert not any("EVIL" in line for line in headings[1:]) and len(headings) == 7
    assert ModelCard(text).data.license == evil


@pytest.mark.parametrize("content", ["[]", "{", "7"])
def test_damaged_report_is_refused(tmp_path: Path, pairs: Recipe, content: str) -> None:
    saved(tmp_path / "final", pairs)
    (tmp_path / "final" / "start.json").write_text(content)
    with pytest.raises(DualfuseError, match=r"start.json .* JSON"):
        card(tmp_path / "final")
