"""``dualfuse serve``: a search service with an HTTP API and a page."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Flags, Model
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.files import read_bounded

EXAMPLES = """
dualfuse serve runs/demo/starter/best runs/demo/images
dualfuse serve runs/demo-scratch/pairs/final photos --rerank 16 --port 8080
dualfuse serve runs/demo/starter/best photos --host 0.0.0.0 --token-file secret.txt
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
    rerank: Annotated[
        int | None,
        arg(
            help="candidates that fusion re-ranks, for text queries; 0: none; by default as many as helped on the "
            "validation set of the model, if they did"
        ),
    ] = None
    budget_ms: Annotated[float, arg(help="milliseconds after which re-ranking stops; the answer says so")] = 500.0
    window_ms: Annotated[float, arg(help="milliseconds that a request waits for others to share its batch")] = 3.0
    max_batch: Annotated[int, arg(help="requests of one batch; 1: no batching")] = 64
    max_queue: Annotated[int, arg(help="requests that may wait or run; further ones get status 429")] = 256
    query_cache_mb: Annotated[int, arg(help="MiB of embeddings of queries that are kept; 0: none")] = 32
    state_cache_mb: Annotated[int, arg(help="MiB of states of re-ranked images that are kept; 0: none")] = 512
    allowed_host: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="NAME", help="name of this host in requests that a proxy passes on, if no token is asked for"),
    ] = ()
    log_format: Annotated[Literal["json", "text"], arg(help="one JSON object per line, or plain lines")] = "json"
    log_queries: Annotated[bool, arg(help="write the texts of queries to the log")] = False
    store: Annotated[
        str,
        arg(
            metavar="STORE",
            help="exact, pgvector (the database of DATABASE_URL), postgresql://..., or MODULE:FUNCTION of a "
            "plug-in: a function that opens the store of a model, given its fingerprint",
        ),
    ] = "exact"
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "bits"],
        arg(help="what the exact store scans first: fp32, fp16 and int8 have the same result, bits is approximate"),
    ] = "fp32"


def run(options: Flags[Options]) -> None:
    """Serve a collection of images: a page for people, and an HTTP API for programs.

    The images are embedded once, and the index follows changed files at POST /v1/refresh. The service listens on this
    machine alone unless --host says otherwise.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.plugins import find
    from dualfuse.search.index import Index, fingerprint
    from dualfuse.search.stores.options import StoreOptions

    try:
        from dualfuse.search.server.http.logs import configure
        from dualfuse.search.server.options import ServerOptions, allowed_hosts, check_address
        from dualfuse.search.server.run import create_service, serve
    except ModuleNotFoundError as error:
        raise MissingExtraError("dualfuse serve", "serve") from error
    token = _token(options.token_file)
    check_address(options.host, token)
    loaded = load(options.model, device=dist.device())

    shipped = StoreOptions.of(options.store, options.precision)

    def build() -> Index:
        store = shipped or find(options.store)(fingerprint(loaded))
        return Index.build(loaded, options.images, store=store)

    settings = ServerOptions(
        token=token,
        hosts=allowed_hosts(options.host, token, options.allowed_host),
        rerank=options.rerank,
        budget_ms=options.budget_ms,
        window_ms=options.window_ms,
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        query_cache_mb=options.query_cache_mb,
        state_cache_mb=options.state_cache_mb,
        log_queries=options.log_queries,
    )
    service = create_service(loaded, build, settings, options.model)
    echo(f"{len(service.snapshot.index)} images; open http://{options.host}:{options.port}/", to_stderr=True)
    configure(as_json=options.log_format == "json")
    serve(service, options.host, options.port)


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    mode = path.stat().st_mode if path.exists() else 0
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DualfuseError(f"other users can write to {path}, and so set the token: chmod 600 {path}")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        echo(f"warning: other users of this machine can read the token in {path}: chmod 600 {path}", to_stderr=True)
    token = read_bounded(path, MAX_TOKEN).decode("utf-8", "replace").strip()
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise DualfuseError(f"{path} does not hold a token: one line of ASCII characters without spaces")
    return token
