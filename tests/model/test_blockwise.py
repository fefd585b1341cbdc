"""Which work each device does for a sequence in parts."""

import pytest

from mtnlg.core.collectives import zigzag
from mtnlg.model.blockwise import pairs_with, pairs_with_own


def chunk_pairs(rank: int, size: int) -> list[tuple[int, int]]:
    """(chunk of the queries, chunk of the keys) of the sequence that this rank computes, in zigzag's order of 2·size chunks."""
    chunks = zigzag(2 * size, size).reshape(size, 2)
    found = [(chunks[rank, queries], chunks[rank, keys]) for queries, keys in pairs_with_own()]
    for block in range(size):
        if block != rank:
            found += [(chunks[rank, int(queries)], chunks[block, int(keys)]) for queries, keys in pairs_with(block, rank)]
    return [(int(queries), int(keys)) for queries, keys in found]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_all_ranks_have_the_same_work_and_together_what_the_causal_mask_leaves(size):
    found = [chunk_pairs(rank, size) for rank in range(size)]
    assert {len(pairs) for pairs in found} == {2 * size + 1}
    assert sorted(pair for pairs in found for pair in pairs) == [(query, key) for query in range(2 * size) for key in range(query + 1)]
