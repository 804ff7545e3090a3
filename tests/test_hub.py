"""Model folders: saving, loading, the hub, and the errors of damaged and hostile folders."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from tiny import caption, changed, png_image, recipe
from torch import Tensor, nn

from dualfuse import hub
from dualfuse.config import trust
from dualfuse.data.text import tokenizer
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.recipe import Recipe
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig


@dataclass(frozen=True)
class TiedConfig(PairsConfig):
    """Pairs whose MLM decoder is the word embedding."""

    def build(self, model: Any) -> Tied:
        return Tied(self, model)


class Tied(Pairs):
    def __init__(self, cfg: PairsConfig, model: Any) -> None:
        super().__init__(cfg, model)
        self.mlm_head.decoder.weight = model.words.word.weight


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    there = other.state_dict()
    assert all(torch.equal(tensor, there[name]) for name, tensor in one.state_dict().items())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return recipe(tmp_path_factory.mktemp("tiny"), images=2)


@pytest.fixture(scope="module")
def task(tiny: Recipe) -> Pairs:
    """A task whose weights give different inputs different outputs."""
    torch.manual_seed(3)
    built = tiny.build()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built.eval()


@pytest.fixture
def folder(tiny: Recipe, task: Pairs, tmp_path: Path) -> Path:
    return hub.save(tmp_path / "model", task, tiny)


@torch.inference_mode()
def outputs(task: Pairs, processor: hub.Processor) -> tuple[Tensor, ...]:
    image = task.model.embed_image(
        torch.stack([processor.image(png_image(n), np.random.default_rng(n)) for n in range(3)])
    )
    ids = torch.stack([torch.from_numpy(processor.text.encode(caption(n)).ids) for n in range(3)])
    words = task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))
    return task.image_features(image), task.text_features(words), task.match_logit(image, words)


def test_a_loaded_model_gives_the_same_outputs(
    tiny: Recipe, task: Pairs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = hub.load(folder)
    assert isinstance(loaded.task, Pairs) and not loaded.task.training
    assert loaded.recipe == tiny
    for processor in (loaded.processor, hub.Processor(loaded.processor.image, tiny.data.text_transform)):
        for one, other in zip(outputs(loaded.task, processor), outputs(task, processor), strict=True):
            assert torch.equal(one, other)
    assert loaded.processor.image.augment is None
    assert len(set(outputs(task, processor)[2].tolist())) == 3
    monkeypatch.chdir(folder.parent)
    assert torch.equal(outputs(hub.load(folder.name).task, processor)[0], outputs(task, processor)[0])


def test_tied_weights_are_stored_once_and_loaded(tiny: Recipe, tmp_path: Path) -> None:
    task = TiedConfig().build(tiny.model.build())
    hub.save(tmp_path / "tied", task, replace(tiny, task=TiedConfig()))
    trust(TiedConfig)
    loaded = hub.load(tmp_path / "tied").task
    assert loaded.mlm_head.decoder.weight is loaded.model.words.word.weight
    assert_same_weights(loaded, task)
    untied = hub.read_tensors(tmp_path / "tied")  # such as for start_from of a task that does not tie
    assert torch.equal(untied["mlm_head.decoder.weight"], task.mlm_head.decoder.weight)


def test_a_model_folder_can_be_moved(tiny: Recipe, task: Pairs, tmp_path: Path) -> None:
    made = recipe(tmp_path / "elsewhere", images=1)
    hub.save(tmp_path / "model", task, made)
    shutil.rmtree(tmp_path / "elsewhere")
    tokenizer.load_tokenizer.cache_clear()
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    loaded = hub.load(moved)
    assert (
        loaded.processor.text.encode("a red cat").ids.tolist()
        == tiny.data.text_transform.encode("a red cat").ids.tolist()
    )
    names = ["checksums.json", "config.json", "model.safetensors", "provenance.json", "tokenizer.json"]
    assert sorted(path.name for path in moved.iterdir()) == names


def test_saving_replaces_the_whole_folder(tiny: Recipe, task: Pairs, folder: Path) -> None:
    (folder / "note.txt").write_text("old")
    (folder.parent / "model.partial").mkdir()
    (folder.parent / "model.partial" / "half").touch()
    hub.save(folder, task, changed(tiny, name="again"))
    assert hub.read_recipe(folder).name == "again"
    assert not (folder / "note.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("broken", ["rmtree", "replace"])
def test_a_kill_leaves_a_complete_model_folder(tiny: Recipe, task: Pairs, folder: Path, broken: str) -> None:
    """The process dies while it removes the old folder, or before the new one has its name."""

    def kill(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half_removed(path: Path, **_: object) -> None:
        if path.exists():
            (path / hub.WEIGHTS).unlink()
            kill()

    def work() -> None:
        setattr(shutil if broken == "rmtree" else os, broken, half_removed if broken == "rmtree" else kill)
        hub.save(folder, task, changed(tiny, name="again"))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert hub.load(folder).recipe.name == ("again" if broken == "rmtree" else "tiny")


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-1], whole[:40], b"", b"<html>log in</html>"):
        weights.write_bytes(content)
        with pytest.raises(
            DualfuseError, match=r"model/model.safetensors is missing, truncated or not a safetensors file"
        ):
            hub.load(folder)
    weights.unlink()
    with pytest.raises(DualfuseError, match=r"model/model.safetensors is missing"):
        hub.load(folder)


def edit(folder: Path, *path: str, value: object) -> None:
    config = inner = json.loads((folder / "config.json").read_text())
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path) -> None:
    edit(folder, "model", "width", value=64)
    with pytest.raises(DualfuseError, match=r"(?s)model.safetensors does not fit its own config.json: .*size mismatch"):
        hub.load(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "is"), "os:system", "names no frozen dataclass"),
        (("task", "is"), "dualfuse.training.checkpoint:save", "names no frozen dataclass"),
        (("data", "is"), "dualfuse.training.loop:TrainState", "names no frozen dataclass"),
        (("model", "is"), "dualfuse.data.image.transform:Augment", "Augment has no field"),
        (("model",), {"is": "dualfuse.data.image.transform:Augment"}, "does not describe a recipe"),
        (("data",), {"is": "dualfuse.data.image.transform:Augment"}, "does not describe a recipe"),
        (("model", "wings"), 2, "VLMoConfig has no field wings"),
        (("is",), "dualfuse.recipe:Run", "Run has no field"),
    ],
)
def test_a_hostile_config_is_refused(folder: Path, path: tuple[str, ...], value: object, message: str) -> None:
    edit(folder, *path, value=value)
    with pytest.raises(DualfuseError, match=rf"model/config.json .*{message}"):
        hub.load(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "width"), 1 << 24, "does not fit its own config.json"),
        (("model", "vocab_size"), 1 << 40, "does not fit its own config.json"),
        (("model", "image_size"), [8 << 20, 8 << 20], "does not fit its own config.json"),
        (("model", "depth"), 1 << 40, "depth is 1099511627776, .*give 1 to 1000"),
        (("data", "image_size"), [1 << 20, 1 << 20], "image size is 1048576 x 1048576; give 1 to"),
    ],
)
def test_sizes_beyond_any_memory_are_refused(folder: Path, path: tuple[str, ...], value: object, message: str) -> None:
    edit(folder, *path, value=value)
    with pytest.raises(DualfuseError, match=rf"(?s)model/(config.json|model.safetensors)[: ].*{message}"):
        hub.load(folder)


def test_values_of_the_wrong_type_are_refused(folder: Path) -> None:
    edit(folder, "model", "init", "std", value=None)
    with pytest.raises(
        DualfuseError,
        match=r"config\.json does not describe a recipe: .*model\.init\.std is None; it should be of type float",
    ):
        hub.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_changed_files_are_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    place = content.rindex(b"]") + 1 if name.endswith("json") else len(content) - 401
    content[place:place] = b" "
    del content[-1]
    (folder / name).write_bytes(content)
    with pytest.raises(
        DualfuseError, match=rf"model/{name}: the content differs .* checksum; .*delete .*checksums.json"
    ):
        hub.load(folder)
    (folder / "checksums.json").unlink()  # as in folders of earlier versions
    hub.load(folder)


@pytest.mark.parametrize("text", ["", "[3]", "{"])
def test_damaged_checksums_are_refused(folder: Path, text: str) -> None:
    (folder / "checksums.json").write_text(text)
    with pytest.raises(DualfuseError, match=r"checksums.json is damaged .*; delete it"):
        hub.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, tiny: Recipe, task: Pairs, value: float) -> None:
    weights = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    weights["model.norm.weight"][3] = value
    hub.save(folder, task, tiny, weights)
    with pytest.raises(
        DualfuseError, match=r"model.safetensors holds NaN or .* in 1 of \d+ tensors: model.norm.weight"
    ):
        hub.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", '"x"', "[]", "3", "null", '{"is": "x"}'])
def test_a_config_that_is_not_a_recipe_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(DualfuseError, match=r"model/config.json does not describe a recipe"):
        hub.load(folder)


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DualfuseError, match=r"nowhere is not a model folder: it is not a folder, but needs a config.json"
    ):
        hub.load(tmp_path / "nowhere")
    with pytest.raises(DualfuseError, match=r"is not a model folder: it holds model, but needs"):
        hub.load(folder.parent)
    with pytest.raises(DualfuseError, match=r"config.json is not a model folder: it is not a folder"):
        hub.load(folder / "config.json")


COMMIT = "0123456789" * 4


class Hub(BaseHTTPRequestHandler):
    """The parts of the Hugging Face hub that one model needs: create, commit, list, resolve."""

    files: dict[str, bytes]
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, content: object, code: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        self.requests.append(self.path)
        lines = [json.loads(line) for line in self.rfile.read(int(self.headers["Content-Length"])).splitlines()]
        if self.headers["Authorization"] != "Bearer hf_secret":
            self.reply({"error": "unauthorized"}, 401)
        elif "/preupload/" in self.path:
            self.reply(
                {"files": [file | {"uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]]}
            )
        elif "/commit/" in self.path:
            added = [line["value"] for line in lines if line["key"] == "file"]
            self.files |= {file["path"]: base64.b64decode(file["content"]) for file in added}
            self.reply(
                {"success": True, "commitOid": COMMIT, "commitUrl": f"{constants.ENDPOINT}/me/mine/commit/{COMMIT}"}
            )
        else:
            assert lines[0] | {"name": "mine", "organization": "me"} == lines[0], lines
            self.reply({"url": f"{constants.ENDPOINT}/me/mine", "id": "me/mine"})

    def do_GET(self) -> None:
        self.requests.append(self.path)
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        if self.path.startswith("/api/models/me/mine/tree/"):
            names = [{"type": "file", "path": name, "size": len(self.files[name]), "oid": name} for name in self.files]
            self.reply(names)
        elif self.path.startswith("/api/models/me/mine"):
            self.reply({"id": "me/mine", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]})
        elif self.path.startswith("/me/mine/") and name in self.files:
            self.reply(self.files[name], ETag=hashlib.sha1(self.files[name]).hexdigest(), X_Repo_Commit=COMMIT)
        else:
            self.reply(b"", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    """A local hub without files."""
    handler = type("Fresh", (Hub,), {"files": {}, "requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield handler
        server.shutdown()
        thread.join()


def test_upload_and_download(
    served: type[Hub], folder: Path, task: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.upload(folder, "me/mine") == f"{constants.ENDPOINT}/me/mine"
    private = "provenance.json"  # names the host
    assert served.files == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != private}
    fetched = hub.download("me/mine")
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == served.files
    loaded = hub.load(fetched)
    assert all(torch.equal(task.state_dict()[name], tensor) for name, tensor in loaded.task.state_dict().items())
    assert hub.download("me/mine/config.json").read_bytes() == served.files["config.json"]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    served.requests.clear()
    assert hub.download("me/mine") == fetched and not served.requests
    with pytest.raises(DualfuseError, match=r"'me/other' is not a local path, and could not be fetched") as error:
        hub.download("me/other")
    assert "hf download me/other --include '*.json' merges.txt" in str(error.value)
    assert "--local-dir other, copy the folder other" in str(error.value)
    with pytest.raises(DualfuseError, match=r"hf download me/other a.ckpt --local-dir other"):
        hub.download("me/other/a.ckpt")


def test_pickles_are_not_fetched_beside_safetensors(served: type[Hub]) -> None:
    served.files |= {"config.json": b"{}", "pytorch_model.bin": b"1", "model.safetensors": b"2", "tf_model.h5": b"3"}
    assert {path.name for path in hub.download("me/mine").iterdir()} == {"config.json", "model.safetensors"}


def test_pickles_are_fetched_where_there_are_only_pickles(served: type[Hub]) -> None:
    served.files |= {"config.json": b"{}", "pytorch_model.bin": b"1", "tf_model.h5": b"3", "vocab.json": b"{}"}
    names = {path.name for path in hub.download("me/mine").iterdir()}
    assert names == {"config.json", "pytorch_model.bin", "vocab.json"}


def test_refusals_of_the_hub_are_reported(served: type[Hub], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DualfuseError, match=r"'me/other' is not a local path, and could not be fetched .*404"):
        hub.download("me/other")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(DualfuseError, match=r"model could not be uploaded to the Hugging Face hub as 'me/mine': .*401"):
        hub.upload(folder, "me/mine")
    served.requests.clear()
    with pytest.raises(DualfuseError, match=r"cache is not a model folder: it needs a config.json and weights"):
        hub.upload(folder.parent / "cache", "me/mine")
    for name in ("", "..", "/absolute/path", "a b/c", "../up/x.ckpt"):
        with pytest.raises(DualfuseError, match=r"is neither a local path nor a name on the Hugging Face hub"):
            hub.download(name)
    assert not served.requests


def test_without_huggingface_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[hub\]'"):
        hub.download("me/mine")
    with pytest.raises(MissingExtraError, match="'hub'"):
        hub.upload(folder, "me/mine")
