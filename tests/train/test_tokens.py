"""A run trains from the folder of a tokenize stage, and from nothing that does not fit."""

import pytest
from runs import losses

from mtnlg.core.errors import ConfigError
from mtnlg.factory import registry
from mtnlg.factory.passes import Machine
from mtnlg.pretrain import run as pretrain


def test_a_run_from_a_folder_of_tokens(tiny, source, tmp_path):
    machine, corpus = Machine(progress=False), (str(source / "docs.jsonl"),)
    for name, options in (("a", {"kind": "byte-level", "vocab_size": 290}), ("b", {"vocab_size": 282})):
        registry.make("train-tokenizer", options).run(corpus, tmp_path / name, machine)
    registry.make("tokenize", {"tokenizer": str(tmp_path / "a")}).run(corpus, tmp_path / "tokens", machine)
    config = tiny(data__source=str(tmp_path / "tokens"), data__tokenizer=str(tmp_path / "tokens" / "tokenizer"), train__num_steps="3")
    pretrain.pretrain(config, str(tmp_path / "run"), {})
    assert len(losses(tmp_path / "run")) == 3
    other = tiny(data__source=str(tmp_path / "tokens"), data__tokenizer=str(tmp_path / "b"))
    with pytest.raises(ConfigError, match="of another tokenizer .*--config.data.tokenizer="):
        pretrain.pretrain(other, str(tmp_path / "other"), {})
