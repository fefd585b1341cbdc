"""ZeRO saves what its formulas say, by the compiler's own account for eight A100s that are not here.

Needs the CUDA plugin's wheels (`pip install jax-cuda13-plugin jax-cuda13-pjrt` of jax's own version), no driver and no GPU.
"""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.core.tree import by_path
from mtnlg.model import count
from mtnlg.parallel import mesh as meshes
from mtnlg.train import state as states
from mtnlg.train import step as steps

pytestmark = pytest.mark.slow

DATA = 8
MODEL = schema.Model(num_layers=8, d_model=1024, num_heads=8, vocab_size=8192, seq_len=256)
A100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048  core_count: 108  fpus_per_core: 64
  shared_memory_per_block: 49152  shared_memory_per_core: 167936  shared_memory_per_block_optin: 166912
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  memory_bandwidth: 2039000000000  l2_cache_size: 41943040  clock_rate_ghz: 1.41  device_memory_size: 85899345920
  cuda_compute_capability { major: 8 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
"""


@pytest.fixture(scope="module")
def devices():
    pytest.importorskip("jax_plugins.xla_cuda13", reason="the wheels jax-cuda13-plugin and jax-cuda13-pjrt are not installed")
    return topologies.get_topology_desc("a100", "cuda", topology=f"1x1x{DATA}", target_config=A100).devices


def memory(devices, zero):
    """(bytes of arguments, of temporaries, at the peak) of one device for a step of two microbatches, bfloat16, recomputing everything."""
    train = schema.Train(batch_size=4 * DATA, microbatch_size=2, compute_dtype="bfloat16", recompute="full")
    config = schema.Config(model=MODEL, train=train, mesh=schema.Mesh(data=DATA, zero=zero))
    mesh = meshes.make(config.mesh, devices)

    def placed(dtype, shape=(), *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, jax.P(*spec)))

    shape = (2, config.microbatch_rows, MODEL.seq_len)
    batch = {name: placed(jnp.float32 if name == "weights" else jnp.int32, shape, None, *meshes.BATCH) for name in spmd.BATCH_FIELDS}
    scalars = [placed(dtype) for dtype in (jnp.int32, jnp.int32, jnp.float32, jnp.bool)]
    compiled = steps.make(config, mesh).lower(states.abstract(config, mesh), batch, *scalars).compile()
    found = compiled.memory_analysis()
    return found.argument_size_in_bytes, found.temp_size_in_bytes, found.peak_memory_in_bytes


# What a step holds beside its arguments, bytes for each parameter (Rajbhandari et al. 2020, section 5, counts the same things at
# rest): the bfloat16 copy, a microbatch's gradients in bfloat16 before they are added up, and the accumulated ones in float32.
TEMPORARIES = {0: 2 + 2 + 4, 1: 2 + 2 + 4, 2: 2 + 2 + 4 / DATA, 3: 4 / DATA + 4 / DATA}
ONE_MORE_COPY = 2  # what activations, blocks being computed and the compiler's own buffers may add


@pytest.mark.parametrize("zero", range(4))
def test_a_device_holds_what_the_formulas_say(devices, zero):
    leaves = by_path(count.abstract_params(MODEL))
    matrices = sum(math.prod(leaf.shape) for path, leaf in leaves.items() if path.endswith("kernel") or path.startswith("embedding"))
    vectors = sum(math.prod(leaf.shape) for leaf in leaves.values()) - matrices
    arguments, temporaries, peak = memory(devices, zero)
    print(f"ZeRO {zero} over {DATA}: arguments {arguments / 2**20:.1f}, temporaries {temporaries / 2**20:.1f}, peak {peak / 2**20:.1f} MiB")
    # float32 parameters and two moments; the batch and five scalars beside them are less than a thousandth.
    stored = 12 * (matrices / (DATA if zero else 1) + vectors)
    assert stored <= arguments < 1.001 * stored
    assert TEMPORARIES[zero] * matrices < temporaries < (TEMPORARIES[zero] + ONE_MORE_COPY) * (matrices + vectors)
