"""Reading a damaged or hostile file of weights gives tensors or a ValueError, and runs none of its code."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from damaged import changed_json, damaged, told
from hypothesis import given
from hypothesis import strategies as st
from tiny import tokenizer
from torch import nn

from dualfuse.convert.load import read_checkpoint
from dualfuse.tensor_files import read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2.0), "c": torch.ones(3, dtype=torch.float16)}


def saved(content: object, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 3))), file)
    return file.getvalue()


FILES: dict[str, bytes] = {
    "x.safetensors": safetensors.torch.save(STATE),
    "x.ckpt": saved({"state_dict": STATE, "hyper_parameters": {"config": {"num_heads": 4}}}),
    "old.bin": saved(STATE, zipped=False),
    "script.pt": scripted(),
    "module.pkl": saved(nn.Sequential(nn.Linear(2, 3))),
    "old.pkl": saved(nn.Sequential(nn.Linear(2, 3)), zipped=False),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
def test_damaged_files(name: str, folder: Path, data: st.DataObject) -> None:
    (folder / name).write_bytes(data.draw(damaged(FILES[name])))
    told(lambda: read_weights(folder / name))


@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content[:2] == b"PK"])
@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
def test_archives_with_damaged_members(name: str, folder: Path, data: st.DataObject) -> None:
    """The checksums fit, so that the damaged pickle is read."""
    inner = (
        "data.pkl" if data.draw(st.integers(0, 4)) else data.draw(st.sampled_from(("data/0", "version", "byteorder")))
    )
    with zipfile.ZipFile(io.BytesIO(FILES[name])) as archive, zipfile.ZipFile(folder / name, "w") as bad:
        for member in archive.namelist():
            content = archive.read(member)
            bad.writestr(member, data.draw(damaged(content)) if member.endswith(inner) else content)
    told(lambda: read_weights(folder / name))


def with_code(code: bytes) -> dict[str, bytes]:
    """Return each file that holds a pickle, with ``code`` in its place."""
    made = {}
    for name in ("x.ckpt", "script.pt", "module.pkl"):
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(FILES[name])) as archive, zipfile.ZipFile(file, "w") as bad:
            for member in archive.namelist():
                bad.writestr(member, code if member.endswith("data.pkl") else archive.read(member))
        made[name] = file.getvalue()
    heads = b"".join(pickle.dumps(head, 2) for head in (0x1950A86A20F9469CFC6C, 1001, {}))
    return made | {"old.bin": heads + code, "old.pkl": heads + code}


HUNGRY = {
    "a memo of 32 GB": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a text of 2 GB": b"\x80\x02X\xff\xff\xff\x7fx.",
    "bytes of an exabyte": b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"x.",
    "an array of 64 GB": b"\x80\x05\x96" + (1 << 36).to_bytes(8, "little") + b"x.",
    "a storage of 4 TB": b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu\x8a\x05"
    + (1 << 39).to_bytes(5, "little")[:5]
    + b"tQ.",
    "a list in a list, without end": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
}


@pytest.mark.parametrize("code", HUNGRY)
@pytest.mark.parametrize("name", ["x.ckpt", "script.pt", "module.pkl", "old.bin", "old.pkl"])
@pytest.mark.filterwarnings("ignore")
def test_excessive_memory_is_refused(code: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(with_code(HUNGRY[code])[name])
    with pytest.raises(ValueError, match=name):
        read_weights(path)


@pytest.mark.parametrize("name", ["x.ckpt", "script.pt", "module.pkl"])
def test_zip_bomb_is_refused(name: str, tmp_path: Path) -> None:
    """A hundred megabytes of zeros in a hundred kilobytes; torch itself does not compress tensors."""
    path = tmp_path / name
    with zipfile.ZipFile(io.BytesIO(FILES[name])) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bad:
        for member in archive.namelist():
            bad.writestr(member, bytes(100 << 20) if member.endswith("data/0") else archive.read(member))
    with pytest.raises(ValueError, match=rf"{name} .*are compressed and become"):
        read_weights(path)


CONFIG = {
    "model_type": "bridgetower",
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "image_size": 32,
    "text_config": {"hidden_size": 32, "vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2},
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "patch_size": 8, "image_size": 32},
}


@given(
    config=changed_json(CONFIG, ("model_type", "text_config", "hidden_size")),
    other=st.sampled_from(("bridgetower", "beit")),
)
def test_hugging_face_configs(folder: Path, config: object, other: str) -> None:
    if isinstance(config, dict) and config.get("model_type") == "bridgetower":
        config["model_type"] = other
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(FILES["x.safetensors"])
    told(lambda: read_checkpoint(folder, tokenizer(folder / "words")))


@given(index=changed_json({"weight_map": {"a.weight": "x.safetensors"}}, ("weight_map", "../x", "/x.safetensors")))
def test_shard_indices(folder: Path, index: object) -> None:
    (folder / "x.safetensors").write_bytes(FILES["x.safetensors"])
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    told(lambda: read_weights(path))
