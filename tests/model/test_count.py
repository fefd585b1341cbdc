"""Parameter counts against the published ones."""

import pytest

from mtnlg.core import config as configs
from mtnlg.core import schema
from mtnlg.model import count

# Narayanan et al. 2021, table 1, as printed.
SC21 = {
    "1.7b": 1.7,
    "3.6b": 3.6,
    "7.5b": 7.5,
    "18b": 18.4,
    "39b": 39.1,
    "76b": 76.1,
    "145b": 145.6,
    "310b": 310.1,
    "530b": 529.6,
    "1t": 1008.0,
}


def model_of(name):
    return configs.resolve([f"--config=configs/{name}"]).model


@pytest.mark.parametrize("size", SC21)
def test_sc21_table(size):
    assert round(count.num_params(model_of(f"sc21.py:{size}")) / 1e9, 1) == SC21[size]


@pytest.mark.parametrize(("name", "expected"), [("mtnlg_530b.py", 529_600_819_200), ("gpt2_124m.py", 124_439_808)])
def test_exact_counts(name, expected):
    assert count.num_params(model_of(name)) == expected


def test_padding_of_the_vocabulary_is_not_counted():
    model = schema.Model(vocab_size=1000)
    assert model.padded_vocab_size == 1024
    assert count.num_params(model) == count.num_params(schema.Model(vocab_size=1000, vocab_multiple=1))


def test_flops_of_the_benchmark_sizes():
    """Figures worked out by hand: 34.7 and 799 MFLOP a token."""
    small = schema.Model(num_layers=4, d_model=256, num_heads=4, vocab_size=8192, seq_len=256)
    assert round(count.flops_per_token(small) / 1e6, 1) == 34.7
    medium = schema.Model(num_layers=12, d_model=768, num_heads=12, vocab_size=50257, seq_len=512)
    assert round(count.flops_per_token(medium) / 1e6) == 799
