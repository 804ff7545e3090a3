"""Tensors are read from files of all kinds, and no code of a file is run."""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys
import time
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dualfuse import child_process, pickles, tensor_files
from dualfuse.errors import DualfuseError
from dualfuse.tensor_files import find_weights, read_weights


class Trap:
    """Runs a command when a pickle of it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.file}",)


STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2.0), "c": torch.ones(3, dtype=torch.float16)}


def same(one: dict[str, Tensor], other: dict[str, Tensor] = STATE) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in other
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.pth", "x.bin"])
def test_pickles(name: str, zipped: bool, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert same(read_weights(tmp_path / name).tensors)
    content = {"state_dict": STATE, "epoch": 3, "hyper_parameters": {"config": {"num_heads": 4}}, "lr_schedulers": [{}]}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    weights = read_weights(tmp_path / name)
    assert same(weights.tensors) and weights.hyper_parameters == {"num_heads": 4}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", ["state_dict", "hyper_parameters"])
def test_code_in_a_pickle_is_refused_and_not_run(key: str, zipped: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "bad.ckpt", tmp_path / "it-ran"
    content = {"state_dict": STATE, key: {"x": Trap(mark)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"bad.ckpt asks for posix.system, .*not opened.*safetensors"):
        read_weights(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap would have worked
    assert mark.exists()


def test_unknown_class_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "callbacks": {Trap: 1}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x.ckpt asks for \S*Trap, which is not part of a plain network"):
        read_weights(tmp_path / "x.ckpt")


def test_lightning_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old checkpoints name a callback by its class, and hold the hyper-parameters in a dict class of Lightning."""
    modules = ("pytorch_lightning.callbacks.model_checkpoint", "pytorch_lightning.utilities.parsing")
    made = []
    with monkeypatch.context() as patch:
        for module_name, name in zip(modules, ("ModelCheckpoint", "AttributeDict"), strict=True):
            module = types.ModuleType(module_name)
            made.append(type(name, (dict,), {"__module__": module_name}))
            setattr(module, name, made[-1])
            for depth in range(module_name.count(".") + 1):  # pickling imports all parents
                parent = module_name.rsplit(".", depth)[0]
                patch.setitem(sys.modules, parent, sys.modules.get(parent, types.ModuleType(parent)))
            patch.setitem(sys.modules, module_name, module)
        callback, attributes = made
        content = {
            "state_dict": STATE,
            "callbacks": {callback: {"best": 0.5}},
            "hyper_parameters": attributes(config={"num_heads": 4}),
        }
        torch.save(content, tmp_path / "x.ckpt")
    weights = read_weights(tmp_path / "x.ckpt")
    assert same(weights.tensors) and weights.hyper_parameters == {"num_heads": 4}


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    """As OpenAI's CLIP was published."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
            self.register_buffer("count", torch.tensor([7]))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(Inner().half(), nn.LayerNorm(3))
            self.scale = nn.Parameter(torch.tensor(2.5))
            self.size = 3

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) * self.scale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; files made by it remain
        torch.jit.save(torch.jit.script(Outer()), tmp_path / "script.pt")
    return tmp_path / "script.pt"


def test_torchscript(scripted: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = dict(torch.jit.load(scripted).state_dict())
    assert len(expected) == 5
    assert same(read_weights(scripted).tensors, expected)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (pickle.dumps(Trap(Path("it-ran"))), "asks for posix.system, which is not part of a plain network"),
        (b"\x80\x02c__torch__.A\nB\n)\x81K\x03b.", "damaged or was not written by torch.save"),
        (b"\x80\x02K\x03.", "holds no tensors"),
        (b"junk", "damaged or was not written by torch.save"),
        (b"", "damaged or was not written by torch.save"),
    ],
)
def test_hostile_torchscript(
    code: bytes, message: str, scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(scripted) as archive, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in archive.namelist():
            bad.writestr(name, code if name.endswith("data.pkl") else archive.read(name))
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "bad.pt")
    assert not Path("it-ran").exists()


def damaged(whole: bytes) -> dict[str, bytes]:
    return {
        "(truncated|a zip archive)": whole[: len(whole) // 2],
        "an empty file": b"",
        "an HTML page": b"<!DOCTYPE html><html>log in</html>",
        "a git-lfs pointer, not the file itself": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        "8 bytes": b"whatever",
    }


@pytest.mark.parametrize("name", ["model.safetensors", "x.ckpt", "script.pt"])
def test_damaged_file_is_described(name: str, scripted: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "model.safetensors":
        save_file(STATE, path)
    elif name == "x.ckpt":
        torch.save(STATE, path)
    for description, content in damaged(path.read_bytes()).items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is damaged.*: it is .*{description}"):
            read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], 3, {}, {"a": 1}, {"state_dict": {}}, {"state_dict": 4}, torch.ones(2)])
def test_file_without_tensors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt holds no tensors by name, only a (list|int|dict|Tensor)"):
        read_weights(tmp_path / "x.pt")


def write_index(folder: Path, content: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(content))
    return path


def test_shards(tmp_path: Path) -> None:
    save_file({"a.weight": STATE["a.weight"]}, tmp_path / "one.safetensors")
    torch.save({name: STATE[name] for name in "bc"}, tmp_path / "two.bin")
    listed = {"a.weight": "one.safetensors", "b": "two.bin", "c": "two.bin"}
    assert same(read_weights(write_index(tmp_path, {"weight_map": listed})).tensors)
    assert find_weights(tmp_path).name == "model.safetensors.index.json"
    with pytest.raises(ValueError, match="lists 1 tensors that its shards do not hold, such as d"):
        read_weights(write_index(tmp_path, {"weight_map": listed | {"d": "two.bin"}}))
    with pytest.raises(ValueError, match=r"three.safetensors is not a file"):
        read_weights(write_index(tmp_path, {"weight_map": listed | {"d": "three.safetensors"}}))
    for outside in ("../one.safetensors", "/etc/passwd.bin", "model.safetensors.index.json", ".."):
        with pytest.raises(ValueError, match=r"which is not a file beside it|unknown ending|is not a file"):
            read_weights(write_index(tmp_path, {"weight_map": {"a": outside}}))
    for odd in ({}, [], {"weight_map": []}, {"weight_map": 3}):
        with pytest.raises(ValueError, match="does not list the shards of a checkpoint"):
            read_weights(write_index(tmp_path, odd))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing.ckpt is not a file"):
        read_weights(tmp_path / "nothing.ckpt")
    (tmp_path / "x.onnx").write_text("")
    with pytest.raises(ValueError, match=r"x.onnx has an unknown ending; weights end in .safetensors, .ckpt"):
        read_weights(tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"has no weights: it holds x.onnx, and should hold one of model.safetensors"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.linear\nLinear", "torch._utils\n_rebuild_tensor_v2", "torch\ndevice"]
)
def test_pickle_cannot_change_what_it_names(name: str, tmp_path: Path) -> None:
    """BUILD with a pair of dicts sets attributes of any object, such as a class or function."""
    code = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\nN}X\x06\0\0\0marked\x88s\x86b."
    torch.save(STATE, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for member in archive.namelist():
            bad.writestr(member, code if member.endswith("data.pkl") else archive.read(member))
    with pytest.raises(ValueError, match=r"bad\.pt"):
        read_weights(tmp_path / "bad.pt")
    assert same(read_weights(tmp_path / "x.pt").tensors)
    assert not any(hasattr(value, "marked") for value in vars(pickles).values())


def test_big_endian_archive_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive, zipfile.ZipFile(tmp_path / "big.pt", "w") as big:
        for name in archive.namelist():
            big.writestr(name, b"big" if name.endswith("byteorder") else archive.read(name))
    with pytest.raises(ValueError, match="its numbers are not little-endian"):
        read_weights(tmp_path / "big.pt")


def test_tensors_of_an_archive_are_mapped_and_private(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    read_weights(tmp_path / "x.pt").tensors["a.weight"].zero_()
    assert same(read_weights(tmp_path / "x.pt").tensors)


@pytest.mark.parametrize("zipped", [True, False])
def test_shared_and_strided_tensors(zipped: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base,
        "row": base[1],
        "transposed": base.T,
        "column": base[:, 2],
        "parameter": nn.Parameter(base),
    }
    torch.save(tensors, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    read = read_weights(tmp_path / "x.pt").tensors
    assert same(read, {name: tensor.detach() for name, tensor in tensors.items()})
    assert read["row"].untyped_storage().data_ptr() == read["base"].untyped_storage().data_ptr()


@pytest.mark.parametrize("name", ["module.pkl", "old.pkl"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_pickled_module(name: str, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 1, bias=False)))
    torch.save(module, tmp_path / name, _use_new_zipfile_serialization=name == "module.pkl")
    assert same(read_weights(tmp_path / name).tensors, module.state_dict())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_names_of_compiled_and_parallel_models(name: str, prefix: str, tmp_path: Path) -> None:
    state = {prefix + key: tensor for key, tensor in STATE.items()}
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    assert same(read_weights(tmp_path / name).tensors)


def test_the_first_bytes_tell_the_format(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.ckpt")
    torch.save(STATE, tmp_path / "y.safetensors")
    assert same(read_weights(tmp_path / "x.ckpt").tensors) and same(read_weights(tmp_path / "y.safetensors").tensors)


def test_pickles_are_read_in_a_child_process_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STATE, tmp_path / "x.ckpt")
    process = os.getpid()

    def connect(path: Path) -> object:
        assert os.getpid() != process
        socket.create_connection(("localhost", 1))
        return {}

    monkeypatch.setattr(tensor_files, "read_pickle", connect)
    with pytest.raises(DualfuseError, match="no network"):
        read_weights(tmp_path / "x.ckpt")


@pytest.mark.parametrize("limit", ["memory", "time"])
def test_limits_of_the_child_process(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STATE, tmp_path / "x.ckpt")
    monkeypatch.setattr(child_process, "BASE_MEMORY", 64 << 20)
    monkeypatch.setattr(child_process, "BASE_SECONDS", 1 if limit == "time" else 60)

    def waste(path: Path) -> object:
        if limit == "memory":
            return bytes(1 << 30)
        time.sleep(60)
        return {}

    monkeypatch.setattr(tensor_files, "read_pickle", waste)
    with pytest.raises(DualfuseError, match=r"x\.ckpt .*GB of memory"):
        read_weights(tmp_path / "x.ckpt")
