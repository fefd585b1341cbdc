"""What must be set before jax is imported, and joining the job that this process belongs to."""

import os

from mtnlg.core import schema
from mtnlg.launch import allocator, processes

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # it leaves autotuning out too, so that a resumed run has the kernels of its start
_OF_THE_SAME = ("--xla_gpu_deterministic_ops", "--xla_gpu_exclude_nondeterministic_ops")


def prepare(config: schema.Config | None = None) -> None:
    """Keeps freed pages (CPU steps fault in their temporaries again otherwise), quiets start-up noise, allows float64 where asked for.

    Asks XLA for deterministic GPU operations with train.deterministic, unless XLA_FLAGS speak of them already.
    In one of several processes (`mtnlg launch`, a cluster) it waits for the others, and raises what `parallel.processes.join` raises.
    """
    processes.end_with_launcher()
    allocator.keep_freed_pages()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if config is not None and config.train.param_dtype == "float64":
        os.environ["JAX_ENABLE_X64"] = "1"
    if config is not None and config.train.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        if not any(name in flags for name in _OF_THE_SAME):
            os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC}".strip()
    if job := processes.of_environment():
        from mtnlg.parallel.processes import join

        join(*job, processes.join_secs(), processes.heartbeat_secs())
