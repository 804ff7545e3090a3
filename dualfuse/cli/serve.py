"""``dualfuse serve``: a search service with an HTTP API and a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Flags, Model
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.files import read_bounded

EXAMPLES = """
dualfuse serve runs/demo/pairs/final runs/demo/images
dualfuse serve runs/demo/pairs/final photos --rerank 16 --port 8080
dualfuse serve runs/demo/pairs/final photos --host 0.0.0.0 --token-file secret.txt
"""
MAX_TOKEN = 4096


@dataclass(frozen=True)
class Options:
    """The flags of ``dualfuse serve``."""

    model: Model
    images: Annotated[Positional[str], arg(metavar="IMAGES", help="folder of images, or shards")]
    host: Annotated[str, arg(help="address to listen on; any other than a loopback address needs --token-file")] = (
        "127.0.0.1"
    )
    port: Annotated[int, arg(help="port to listen on; 0: any free one")] = 8000
    token_file: Annotated[
        Path | None, arg(metavar="FILE", help="file with the secret that requests send as Authorization: Bearer SECRET")
    ] = None
    rerank: Annotated[int, arg(help="candidates that fusion re-ranks, for text queries; 0: none")] = 0
    budget_ms: Annotated[float, arg(help="milliseconds after which re-ranking stops; the answer says so")] = 500.0
    window_ms: Annotated[float, arg(help="milliseconds that a request waits for others to share its batch")] = 3.0
    max_batch: Annotated[int, arg(help="requests of one batch; 1: no batching")] = 64
    max_queue: Annotated[int, arg(help="requests that may wait; further ones are answered with status 429")] = 256
    log_queries: Annotated[bool, arg(help="write the texts of queries to the log")] = False
    store: Annotated[
        str,
        arg(
            metavar="MODULE:FUNCTION",
            help="vector store of a plug-in: a function that opens the store of a model, given its fingerprint; empty: "
            "a file beside the images",
        ),
    ] = ""


def run(options: Flags[Options]) -> None:
    """Serve a collection of images: a page for people, and an HTTP API for programs.

    The images are embedded once, and the index follows changed files at POST /v1/refresh. The service listens on this
    machine alone unless --host says otherwise.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.plugins import find
    from dualfuse.search.index import Index, fingerprint

    try:
        from dualfuse.search.server.options import ServerOptions, check_address
        from dualfuse.search.server.run import create_service, serve
    except ModuleNotFoundError as error:
        raise MissingExtraError("dualfuse serve", "serve") from error
    token = _token(options.token_file)
    check_address(options.host, token)
    loaded = load(options.model, device=dist.device())

    def build() -> Index:
        store = find(options.store)(fingerprint(loaded)) if options.store else None
        return Index.build(loaded, options.images, store=store)

    settings = ServerOptions(
        token=token,
        rerank=options.rerank,
        budget_ms=options.budget_ms,
        window_ms=options.window_ms,
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        log_queries=options.log_queries,
    )
    service = create_service(loaded, build, settings, options.model)
    echo(f"{len(service.snapshot.index)} images; open http://{options.host}:{options.port}/", to_stderr=True)
    serve(service, options.host, options.port)


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    token = read_bounded(path, MAX_TOKEN).decode("utf-8", "replace").strip()
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise DualfuseError(f"{path} does not hold a token: one line of ASCII characters without spaces")
    return token
