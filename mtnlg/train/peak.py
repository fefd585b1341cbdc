"""The fastest matrix product this machine has shown in this run: what MFU is measured against."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh


def best_gemm_flops_per_sec(dtype: str, repeats: int = 5) -> float:
    """FLOP/s of the best of `repeats` square products, by JAX on one device and, in float32 on a CPU, by NumPy too.

    On an accelerator a timing covers many larger products, one after the other, so that launching them does not count.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, chained = (2048, 1) if on_cpu else (8192, 32)
    host = np.random.default_rng(0).standard_normal((size, size), np.float32) / size**0.5
    a = jnp.asarray(host, dtype)

    @jax.jit
    def product(a):
        with jax.default_matmul_precision("float32"):
            return jax.lax.fori_loop(0, chained, lambda _, x: x @ a, a)

    product(a).block_until_ready()
    seconds = min(_seconds(lambda: product(a).block_until_ready()) for _ in range(repeats)) / chained
    if on_cpu and dtype == "float32":
        seconds = min(seconds, *(_seconds(lambda: host @ host) for _ in range(repeats)))
    return 2 * size**3 / seconds


def of_mesh(flops_per_sec: float, mesh: Mesh) -> float:
    """What all devices of the mesh can do together when one can do so much. Virtual CPU devices share the cores that one uses up."""
    return flops_per_sec * (1 if mesh.devices.flat[0].platform == "cpu" else mesh.size)


def _seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
