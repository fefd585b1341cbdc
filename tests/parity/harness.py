"""Puts the JAX model beside the NumPy oracle: the same option set, the same parameters, the design's measure of error."""

import dataclasses

import numpy as np
from numpy_gpt import Spec, flatten

from mtnlg.core import schema


def config_of(spec: Spec, seq_len: int, biases: bool, **train) -> schema.Config:
    """The config of an oracle's spec, in float64."""
    shared = {f.name for f in dataclasses.fields(schema.Model)} & {f.name for f in dataclasses.fields(Spec)}
    values = {name: getattr(spec, name) for name in shared}
    model = schema.Model(
        **values,
        vocab_multiple=spec.padded_vocab_size,
        seq_len=seq_len,
        tie_embeddings=spec.tied,
        **{f"bias_{site}": biases for site in ("qkv", "attention_output", "mlp", "norm")},
    )
    train = {"compute_dtype": "float64", "param_dtype": "float64", "batch_size": 2, **train}
    return schema.Config(model=model, train=schema.Train(**train))


def error(got, expected) -> float:
    """max|a - b| / max|b| over one leaf."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float(np.max(np.abs(got - expected)) / max(np.max(np.abs(expected)), 1e-300))


def worst(got, expected) -> tuple[float, str]:
    """(error, path) of the worst leaf; a key bias, whose gradient may be exactly zero, counts against the largest leaf of its tree."""
    got, expected = flatten(got), flatten(expected)
    assert got.keys() == expected.keys()
    largest = max(float(np.max(np.abs(leaf))) for leaf in expected.values())

    def of(path):
        if path.endswith("key_value/bias"):
            return float(np.max(np.abs(np.asarray(got[path]) - expected[path]))) / largest
        return error(got[path], expected[path])

    return max((of(path), path) for path in expected)
