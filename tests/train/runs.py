"""What a run left in its folder."""

import pathlib

import numpy as np

from mtnlg import checkpoint
from mtnlg.run import metrics


def arrays(workdir, step):
    """Every stored array of a step, by file: what bitwise equality is judged on."""
    from orbax.checkpoint import v1 as ocp

    path = (pathlib.Path(workdir) / "checkpoints" / str(step)).absolute()
    parts = {part: ocp.load(path, checkpointable_name=part) for part in ("params", "optimizer")}
    return {name: np.asarray(leaf) for name, leaf in checkpoint.by_path(parts).items()}


def require_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def losses(workdir):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics.read(f"{workdir}/metrics.jsonl") if "loss" in line]
