"""Process group, collectives, shared RNG, DDP and FSDP. Everything also works on a single process, without a group."""

from dualfuse.distributed.collectives import all_gather as all_gather
from dualfuse.distributed.collectives import all_reduce_max as all_reduce_max
from dualfuse.distributed.collectives import all_reduce_mean as all_reduce_mean
from dualfuse.distributed.collectives import any_rank as any_rank
from dualfuse.distributed.collectives import barrier as barrier
from dualfuse.distributed.collectives import fetch_examples as fetch_examples
from dualfuse.distributed.parallel import apply_fsdp as apply_fsdp
from dualfuse.distributed.parallel import between_steps as between_steps
from dualfuse.distributed.parallel import distribute_like as distribute_like
from dualfuse.distributed.parallel import full_tensor as full_tensor
from dualfuse.distributed.parallel import gathered_parameters as gathered_parameters
from dualfuse.distributed.parallel import is_sharded as is_sharded
from dualfuse.distributed.parallel import local_tensor as local_tensor
from dualfuse.distributed.parallel import sync_gradients as sync_gradients
from dualfuse.distributed.parallel import wrap as wrap
from dualfuse.distributed.process_group import TIMEOUT as TIMEOUT
from dualfuse.distributed.process_group import device as device
from dualfuse.distributed.process_group import draw_shared as draw_shared
from dualfuse.distributed.process_group import process_group as process_group
from dualfuse.distributed.process_group import rank as rank
from dualfuse.distributed.process_group import seed_shared_rng as seed_shared_rng
from dualfuse.distributed.process_group import world_size as world_size
from dualfuse.distributed.sharded_tensors import ShardedTensors as ShardedTensors
from dualfuse.distributed.sharded_tensors import read_shards as read_shards
