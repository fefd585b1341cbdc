"""What must be set before jax is imported."""

import os

from mtnlg.core import schema
from mtnlg.launch import allocator


def prepare(config: schema.Config | None = None) -> None:
    """Keeps freed pages (CPU steps fault in their temporaries again otherwise), quiets start-up noise, allows float64 where asked for."""
    allocator.keep_freed_pages()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if config is not None and config.train.param_dtype == "float64":
        os.environ["JAX_ENABLE_X64"] = "1"
