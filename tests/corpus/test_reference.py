import lzma
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from mtnlg.core.errors import DataError
from mtnlg.corpus import reference
from mtnlg.corpus.reference import ByteTrigram, trigram_bits_per_byte, xz_bits_per_byte

START = 256


def toy(seed: int, number: int) -> list[bytes]:
    chance = random.Random(seed)
    return [bytes(chance.choices(b"abc \n\xff\0", [5, 3, 2, 2, 1, 1, 1], k=chance.randrange(40))) for _ in range(number)]


def slow_bits_per_byte(train, heldout):
    """The recursion of Chen & Goodman 1998, section 2.5, with a dict for each order."""
    counts = [defaultdict(Counter) for _ in range(3)]
    for document in train:
        symbols = [START, START, *document]
        for i in range(2, len(symbols)):
            for order in range(3):
                counts[order][tuple(symbols[i - order : i])][symbols[i]] += 1

    def probability(context, byte):
        shorter = probability(context[1:], byte) if context else 1 / 256
        after = counts[len(context)][context]
        if not after:
            return shorter
        return (after[byte] + len(after) * shorter) / (after.total() + len(after))

    bits = size = 0
    for document in heldout:
        symbols = [START, START, *document]
        for i in range(2, len(symbols)):
            bits -= math.log2(probability(tuple(symbols[i - 2 : i]), symbols[i]))
            size += 1
    return bits / size


@pytest.mark.parametrize("block_bytes", [1, 7, 2_000_000])
def test_equals_the_slow_model(monkeypatch, block_bytes):
    monkeypatch.setattr(reference, "_BLOCK_BYTES", block_bytes)
    train, heldout = toy(1, 12), [*toy(2, 5), b"never seen: \x80\x81", b"", b"a"]
    assert trigram_bits_per_byte(iter(train), iter(heldout)) == pytest.approx(slow_bits_per_byte(train, heldout), rel=1e-12)


def test_probabilities_sum_to_one():
    model = ByteTrigram(toy(3, 50))
    chance = np.random.default_rng(0)
    contexts = np.concatenate([chance.integers(0, 257, (300, 2)), [[256, 256], [256, 97], [97, 98], [98, 97]]])
    assert model.probability(256, 256, np.arange(256)).max() > 0.1  # not uniform
    total = model.probability(contexts[:, :1], contexts[:, 1:], np.arange(256)).sum(1)
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_nothing_learned_costs_eight_bits():
    assert trigram_bits_per_byte([], [b"any text"]) == 8


def test_more_of_the_same_text_costs_less():
    train, heldout = toy(4, 3000), toy(5, 100)
    few, many = (trigram_bits_per_byte(train[:n], heldout) for n in (3, 3000))
    entropy = -sum(p / 15 * math.log2(p / 15) for p in (5, 3, 2, 2, 1, 1, 1))
    assert entropy * 0.97 < many < few and many == pytest.approx(entropy, rel=0.03)


def test_documents_do_not_see_each_other():
    assert trigram_bits_per_byte([b"ab"] * 9, [b"a", b"a"]) == trigram_bits_per_byte([b"ab"] * 9, [b"a"])


def test_xz_is_the_size_of_one_file():
    heldout = toy(6, 200)
    packed = lzma.compress(b"".join(heldout), preset=9)
    assert xz_bits_per_byte(iter(heldout)) == 8 * len(packed) / sum(map(len, heldout))


@pytest.mark.parametrize("measure", [lambda texts: trigram_bits_per_byte([b"a"], texts), xz_bits_per_byte])
@pytest.mark.parametrize("texts", [[], [b""]])
def test_no_heldout_text_is_an_error(measure, texts):
    with pytest.raises(DataError, match=r"no held-out text.*data\.heldout_fraction"):
        measure(texts)
