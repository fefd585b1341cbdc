"""The fastest matrix product this machine has shown in this run: what MFU is measured against."""

import time

import jax
import jax.numpy as jnp
import numpy as np


def best_gemm_flops_per_sec(dtype: str, size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of the best of `repeats` square products, by JAX on one device and, in float32 on a CPU, by NumPy too."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    runs = [lambda: product(a).block_until_ready()]
    if jax.default_backend() == "cpu" and dtype == "float32":
        host = np.ones((size, size), np.float32)
        runs.append(lambda: host @ host)
    best = min(_seconds(run) for run in runs for _ in range(repeats))
    return 2 * size**3 / best


def _seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
