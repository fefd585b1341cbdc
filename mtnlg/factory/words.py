"""Texts as words, all of a text at once: where they lie and a number of 64 bits for each, and the same for runs of n words.

Words are what `\\w+` matches, in lower case; a Han character or a kana is a word of its own, for nothing parts them in writing.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtnlg.data.order import mixed

_ALONE = ((0x3040, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x40000))  # kana, Han
_ALONE_BIT = 1 << 31
_BLOCK_CHARS = 1 << 16  # whose words are hashed at once: what fits a core's cache
_CHAR_BASE, _WORD_BASE = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95  # odd numbers without a pattern


@dataclass(frozen=True)
class Words:
    """Of a text, in order. values: uint64, equal for equal words, for others but by chance; starts, ends: in characters."""

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def words(text: str) -> Words:
    """The words of a text. Memory is about 30 bytes a character; of a letter whose lower case is two, the first counts."""
    units = _units()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]
    is_word, is_alone = units != 0, units >= _ALONE_BIT
    goes_on = is_word[1:] & is_word[:-1] & ~(is_alone[1:] | is_alone[:-1])
    is_start, is_end = is_word.copy(), is_word
    is_start[1:] &= ~goes_on
    is_end[:-1] &= ~goes_on
    starts = np.flatnonzero(is_start)
    return Words(_values(units, starts), starts, np.flatnonzero(is_end) + 1)


def runs(values: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """(n, the number of the n words from each place on) for n from 1 to `longest`, as long as the text has so many words."""
    found = values
    for n in range(1, min(longest, values.size) + 1):
        if n > 1:
            found = found[:-1] * np.uint64(_WORD_BASE) + values[n - 1 :]
        yield n, found


def runs_inside(texts: list[str], longest: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Of all these texts, taken apart together, for small ones would cost more alone: `runs`, with (places in `texts`, bool) beside.

    True: the run lies inside one text, and has `longest` words or is the whole of a shorter one.
    """
    found = words("\n".join(texts))
    owners = np.searchsorted(np.cumsum([len(text) + 1 for text in texts]), found.starts, side="right")
    sizes = np.bincount(owners, minlength=len(texts))
    for n, values in runs(found.values, longest):
        owner = owners[: values.size]
        is_taken = owner == owners[n - 1 :]
        if n < longest:
            is_taken &= sizes[owner] == n
        yield n, values, owner, is_taken


def _values(units: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A polynomial of each word's characters modulo 2^64, then mixed."""
    found = np.empty(starts.size, np.uint64)
    blocks = np.searchsorted(starts, np.arange(0, units.size + _BLOCK_CHARS, _BLOCK_CHARS))
    for first, end in itertools.pairwise(blocks):
        if first < end:
            begin = starts[first]
            stop = starts[end] if end < starts.size else units.size
            inside = starts[first:end] - begin
            terms = units[begin:stop] * _powers(_CHAR_BASE, stop - begin)
            found[first:end] = np.add.reduceat(terms, inside) * _powers(pow(_CHAR_BASE, -1, 2**64), _BLOCK_CHARS)[inside]
    return mixed(found)


def _powers(base: int, number: int) -> np.ndarray:
    """base^0, base^1, ..."""
    return _few_powers(base)[:number] if number <= _BLOCK_CHARS else _new_powers(base, number)


@functools.cache
def _few_powers(base: int) -> np.ndarray:
    return _new_powers(base, _BLOCK_CHARS)


def _new_powers(base: int, number: int) -> np.ndarray:
    factors = np.full(number, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


@functools.cache
def _units() -> np.ndarray:
    """For each character: its lower case, with _ALONE_BIT if it is a word of its own; 0 if it belongs to no word."""
    every = "".join(map(chr, range(0x110000)))
    lower = np.frombuffer(every.replace("İ", "i").lower().encode("utf-32-le", "surrogatepass"), np.uint32)  # İ alone becomes two
    found = np.zeros(lower.size, np.uint32)
    for match in re.finditer(r"\w+", every):
        found[slice(*match.span())] = lower[slice(*match.span())]
    for start, end in _ALONE:
        found[start:end] |= np.where(found[start:end], np.uint32(_ALONE_BIT), np.uint32(0))
    return found
