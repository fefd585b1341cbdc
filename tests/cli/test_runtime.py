"""What is set before jax is imported."""

import dataclasses
import os

import pytest

from mtnlg.cli import runtime
from mtnlg.core import schema


@pytest.mark.parametrize(
    ("given", "deterministic", "flags"),
    [
        (None, True, "--xla_gpu_deterministic_ops=true"),
        ("--other=1", True, "--other=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", True, "--xla_gpu_deterministic_ops=false"),
        ("--xla_gpu_exclude_nondeterministic_ops=true", True, "--xla_gpu_exclude_nondeterministic_ops=true"),
        ("--other=1", False, "--other=1"),
    ],
)
def test_deterministic_operations_are_asked_for_once(monkeypatch, given, deterministic, flags):
    monkeypatch.setenv("XLA_FLAGS", given or "")
    if given is None:
        monkeypatch.delenv("XLA_FLAGS")
    config = schema.Config(train=dataclasses.replace(schema.Train(), deterministic=deterministic))
    runtime.prepare(config)
    runtime.prepare(config)
    assert os.environ["XLA_FLAGS"] == flags


def test_without_a_run_nothing_is_asked_for(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--other=1")
    runtime.prepare()
    assert os.environ["XLA_FLAGS"] == "--other=1"
