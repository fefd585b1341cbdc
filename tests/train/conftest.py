"""Runs of a tiny model. Their peak is not measured: its seconds are not what these tests are about."""

import json

import numpy as np
import pytest

from mtnlg.core import config as configs
from mtnlg.train import peak

TINY = {
    "model.num_layers": "1",
    "model.d_model": "16",
    "model.num_heads": "2",
    "model.seq_len": "16",
    "model.vocab_size": "300",
    "train.batch_size": "4",
    "train.num_steps": "6",
    "optimizer.learning_rate": "0.01",
    "checkpoint.every_steps": "3",
    "checkpoint.keep_last": "9",
    "log.every_steps": "1",
    "log.tensorboard": "false",
    "sample.max_new_tokens": "4",
    "data.heldout_fraction": "0.2",
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A function: the resolved config of a tiny model with these changes, a dot in a key written as two underscores."""
    default = tmp_path_factory.mktemp("tiny") / "default.json"
    default.write_text("{}")

    def resolved(**changes):
        values = TINY | {name.replace("__", "."): value for name, value in changes.items()}
        return configs.resolve([f"--config={default}", *(f"--config.{name}={value}" for name, value in values.items())])

    return resolved


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Forty small documents."""
    folder = tmp_path_factory.mktemp("text")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "seven", "wizards", "with", "quartz"]
    random = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(random.choice(words, 60))}) for _ in range(40)]
    (folder / "docs.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def resolve(tiny, source, prepared):
    return lambda **changes: tiny(**{"data__source": str(source / "docs.jsonl"), "data__directory": str(prepared)} | changes)


@pytest.fixture(autouse=True)
def no_gemm_timing(monkeypatch):
    monkeypatch.setattr(peak, "best_gemm_flops_per_sec", lambda dtype: 1e11)
