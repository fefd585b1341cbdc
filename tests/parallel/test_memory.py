"""ZeRO and pipeline schedules save what their formulas say, by the compiler's own account for A100s that are not here.

Needs the CUDA plugin's wheels (`pip install jax-cuda13-plugin jax-cuda13-pjrt` of jax's own version), no driver and no GPU.
"""

import math
import pathlib

import pytest
from jax.experimental import topologies

from mtnlg.core import config as configs
from mtnlg.core import schema
from mtnlg.core.tree import by_path
from mtnlg.model import count
from mtnlg.parallel import mesh as meshes
from mtnlg.train import step as steps

ROOT = pathlib.Path(__file__).parents[2]

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
    return topology(DATA)


def topology(num_devices: int):
    pytest.importorskip("jax_plugins.xla_cuda13", reason="the wheels jax-cuda13-plugin and jax-cuda13-pjrt are not installed")
    hosts, each = max(num_devices // 8, 1), min(num_devices, 8)
    return topologies.get_topology_desc("a100", "cuda", topology=f"1x{hosts}x{each}", target_config=A100).devices


def compiled(config, devices):
    """The compiler's account of a step's memory on one device."""
    return steps.lower(config, meshes.make(config.mesh, devices)).compile().memory_analysis()


def memory(devices, zero):
    """(bytes of arguments, of temporaries, at the peak) of one device for a step of two microbatches, bfloat16, recomputing everything."""
    train = schema.Train(batch_size=4 * DATA, microbatch_size=2, compute_dtype="bfloat16", recompute="full")
    found = compiled(schema.Config(model=MODEL, train=train, mesh=schema.Mesh(data=DATA, zero=zero)), devices)
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


# Pipelines

STAGES = 4


def pipelined(schedule, num_microbatches):
    train = schema.Train(batch_size=4 * num_microbatches, microbatch_size=4, compute_dtype="bfloat16")
    order = schema.Pipeline(schedule=schedule, layers_per_stage=(2,) * STAGES)
    config = schema.Config(model=MODEL, train=train, mesh=schema.Mesh(pipe=STAGES), pipeline=order)
    temporaries = compiled(config, topology(STAGES)).temp_size_in_bytes
    print(f"{schedule}, {STAGES} stages, {num_microbatches} microbatches: temporaries {temporaries / 2**20:.1f} MiB")
    return temporaries


def test_a_schedule_holds_as_many_microbatches_as_it_says():
    few, many = pipelined("1f1b", STAGES), pipelined("1f1b", 8 * STAGES)
    assert abs(many / few - 1) < 0.05, "1F1B holds P microbatches, whatever the batch"
    assert many < 0.35 * pipelined("gpipe", 8 * STAGES)
    assert pipelined("zero_bubble", 8 * STAGES) < 1.25 * many


def test_mt_nlg_530b_fits_2240_a100s():
    """Smith et al. 2022, section 3.2: tensor 8, pipeline 35, data 8."""
    config = configs.resolve([f"--config={ROOT / 'configs/mtnlg_530b.py'}"])
    found = compiled(config, topology(2240))
    print(f"530B on 2240 A100: arguments {found.argument_size_in_bytes / 2**30:.2f}, peak {found.peak_memory_in_bytes / 2**30:.2f} GiB")
    assert found.argument_size_in_bytes < 12.4 * count.num_params(config.model) / 2240, "parameters and moments, each in one place"
    assert found.peak_memory_in_bytes < 80e9
