"""A service of a tiny model with random weights over images of noise, and a client of its application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from tiny import MODEL, png_image, tokenizer

from dualfuse import hub
from dualfuse.hub import LoadedModel
from dualfuse.recipe import Data, Recipe
from dualfuse.search.index import Index
from dualfuse.search.server.app import create_app
from dualfuse.search.server.options import ServerOptions
from dualfuse.search.server.run import create_service
from dualfuse.search.server.service import Service
from dualfuse.tasks.pretrain.pairs import PairsConfig

OPTIONS = ServerOptions(window_ms=1, budget_ms=60_000)
Serve = Callable[..., "contextmanager[TestClient]"]


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("served")
    data = Data(image_size=(32, 32), text_length=12, tokenizer=tokenizer(folder))
    recipe = Recipe("tiny", replace(MODEL, drop_path=0.0), PairsConfig(), data)
    torch.manual_seed(1)
    task = recipe.task.build(recipe.model.build())
    for weight in task.parameters():  # random weights of 0.02 tell hardly anything apart
        weight.data += 0.2 * torch.randn_like(weight)
    return hub.load(hub.save(folder / "model", task, recipe))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number in range(12):
        path = folder / ("spring" if number % 2 else "autumn") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_image(number, 48))
    return folder


@pytest.fixture
def service(loaded: LoadedModel, images: Path) -> Service:
    return create_service(loaded, lambda: Index.build(loaded, images), OPTIONS, "some/where/tiny")


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client
