"""Process group, collectives, shared RNG, DDP and FSDP. Everything also works on a single process, without a group."""

from dualfuse.distributed.collectives import (
    all_gather,
    all_reduce_max,
    all_reduce_mean,
    any_rank,
    barrier,
    fetch_examples,
)
from dualfuse.distributed.parallel import (
    apply_fsdp,
    between_steps,
    distribute_like,
    full_tensor,
    gathered_parameters,
    is_sharded,
    local_tensor,
    sync_gradients,
    wrap,
)
from dualfuse.distributed.process_group import (
    TIMEOUT,
    device,
    draw_shared,
    process_group,
    rank,
    seed_shared_rng,
    world_size,
)
from dualfuse.distributed.sharded_tensors import ShardedTensors, read_shards

__all__ = [
    "TIMEOUT",
    "ShardedTensors",
    "all_gather",
    "all_reduce_max",
    "all_reduce_mean",
    "any_rank",
    "apply_fsdp",
    "barrier",
    "between_steps",
    "device",
    "distribute_like",
    "draw_shared",
    "fetch_examples",
    "full_tensor",
    "gathered_parameters",
    "is_sharded",
    "local_tensor",
    "process_group",
    "rank",
    "read_shards",
    "seed_shared_rng",
    "sync_gradients",
    "world_size",
    "wrap",
]
