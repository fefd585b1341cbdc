"""How prompts are cut: whole blocks of the cache counted from their beginning, and a power of two of what is left."""

from collections.abc import Sequence

from mtnlg.model import cache as caches

SHORTEST = 32  # tokens of the shortest chunk


def width(num_left: int) -> int:
    """Of the next chunk: a whole block, or the next power of two of what is left."""
    return min(power_of_two(num_left, SHORTEST), caches.BLOCK)


def num_shared(prefix: Sequence[int], ids: Sequence[int]) -> int:
    """Tokens of whole blocks with which both begin; at least one of the ids is left to be read."""
    limit = min(len(prefix), len(ids) - 1) // caches.BLOCK
    blocks = (slice(n * caches.BLOCK, (n + 1) * caches.BLOCK) for n in range(limit))
    return next((n for n, block in enumerate(blocks) if prefix[block] != ids[block]), limit) * caches.BLOCK


def num_slots(num_tokens: int) -> int:
    """The power of two, in blocks, that holds so many tokens."""
    return power_of_two(num_tokens, caches.BLOCK)


def power_of_two(number: int, least: int) -> int:
    """The next one, at least `least`."""
    return max(least, 1 << (number - 1).bit_length())
