"""One process or many: the only package that speaks to torch.distributed. A world of one needs no process group."""

from dualfuse.dist.alike import draw_alike, seed_alike
from dualfuse.dist.exchange import anywhere, barrier, fetch, gather, largest, mean
from dualfuse.dist.parallel import between_steps, gathered, is_sharded, like, own, shard, sync_gradients, whole, wrap
from dualfuse.dist.processes import PATIENCE, device, processes, rank, world
from dualfuse.dist.shards import Shards, read_shards

__all__ = [
    "PATIENCE",
    "Shards",
    "anywhere",
    "barrier",
    "between_steps",
    "device",
    "draw_alike",
    "fetch",
    "gather",
    "gathered",
    "is_sharded",
    "largest",
    "like",
    "mean",
    "own",
    "processes",
    "rank",
    "read_shards",
    "seed_alike",
    "shard",
    "sync_gradients",
    "whole",
    "world",
    "wrap",
]
