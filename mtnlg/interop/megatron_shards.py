"""How tensor parallelism parts Megatron-LM's tensors, and the order of rows that each version of its checkpoints has.

| version | rows of query, key and value on a rank |
| 0       | [3, heads, K]                          |
| 1.0     | [heads, K, 3]                          |
| 2.0 on  | [groups, R + 2, K], which is what comes out of here |

(megatron/training/checkpointing.py, fix_query_key_value_ordering.) A gated layer's first kernel has its gate and then its columns on
each rank. Ranks follow one another on the first axis, or on the second of the maps into the residual stream.
"""

from typing import NamedTuple

import numpy as np

from mtnlg.core.errors import DataError

VERSIONS = (0, 1.0, 2.0, 3.0)
_ROWS = (
    "word_embeddings.weight",
    "output_layer.weight",
    ".linear_qkv.weight",
    ".linear_qkv.bias",
    ".linear_fc1.weight",
    ".linear_fc1.bias",
)
_COLUMNS = (".linear_proj.weight", ".linear_fc2.weight")


class Rows(NamedTuple):
    """What the order of rows depends on. head_dim: K; gated: the first kernel of the feed-forward layer is two."""

    version: float
    head_dim: int
    gated: bool


def axis(name: str) -> int | None:
    """On which axis the ranks have parts of a tensor; None: each has all of it."""
    return 0 if name.endswith(_ROWS) else 1 if name.endswith(_COLUMNS) else None


def shape(name: str, ranks: list[np.ndarray], where: str) -> tuple[int, ...]:
    """Of the whole tensor. Raises DataError when the ranks' parts do not fit together."""
    first = ranks[0]
    if any(part.shape != first.shape or part.dtype != first.dtype for part in ranks):
        parts = ", ".join(f"{list(part.shape)} {part.dtype}" for part in ranks)
        raise DataError(f"{name} has parts that do not fit together: {parts}", where, "files of one checkpoint")
    along = axis(name)
    if along is None:
        return first.shape
    if along >= first.ndim:
        raise DataError(f"{name} has only {first.ndim} dims", where, "files of one checkpoint")
    return tuple(size * (len(ranks) if dim == along else 1) for dim, size in enumerate(first.shape))


def join(name: str, ranks: list[np.ndarray], rows: Rows, where: str) -> np.ndarray:
    """The whole tensor. Raises DataError when ranks differ in what all of them hold, or have rows that are no heads."""
    along = axis(name)
    if along is None:
        for rank, part in enumerate(ranks[1:], 1):
            require_same(name, ranks[0], f"{name} of tensor rank {rank}", part, where)
        return ranks[0]
    if ".linear_qkv." in name and rows.version < 2:
        if ranks[0].shape[0] % (3 * rows.head_dim):
            raise DataError(f"{name} has {ranks[0].shape[0]} rows on a rank, not 3 x {rows.head_dim} a head", where, "its own args")
        ranks = [_by_head(part, rows) for part in ranks]
    if ".linear_fc1." in name and rows.gated and len(ranks) > 1:
        if ranks[0].shape[0] % 2:
            raise DataError(
                f"{name} has {ranks[0].shape[0]} rows on a rank, which is not a gate and as many columns", where, "its own args"
            )
        halves = [part.reshape(2, -1, *part.shape[1:]) for part in ranks]
        return np.concatenate(halves, 1).reshape(-1, *ranks[0].shape[1:])
    return ranks[0] if len(ranks) == 1 else np.concatenate(ranks, along)


def _by_head(part: np.ndarray, rows: Rows) -> np.ndarray:
    """Rows [3, heads, K] or [heads, K, 3] as [heads, 3, K]."""
    rest = part.shape[1:]
    if rows.version == 0:
        return part.reshape(3, -1, rows.head_dim, *rest).swapaxes(0, 1).reshape(-1, *rest)
    return np.moveaxis(part.reshape(-1, rows.head_dim, 3, *rest), 2, 1).reshape(-1, *rest)


def split(name: str, whole: np.ndarray, rank: int, num_ranks: int, gated: bool) -> np.ndarray:
    """A rank's part, in the order of version 3.0: a view, but for a gated layer's first kernel."""
    along = axis(name)
    if along is None:
        return whole
    if ".linear_fc1." in name and gated:
        halves = whole.reshape(2, num_ranks, -1, *whole.shape[1:])
        return halves[:, rank].reshape(-1, *whole.shape[1:])
    size = whole.shape[along] // num_ranks
    return whole[(slice(None),) * along + (slice(rank * size, (rank + 1) * size),)]


def require_same(name: str, one: np.ndarray, other_name: str, other: np.ndarray, where: str) -> None:
    """Raises DataError unless two arrays are the same, bit for bit."""
    bits = np.dtype(f"u{one.dtype.itemsize}")
    if one.shape != other.shape or one.dtype != other.dtype or not np.array_equal(one.view(bits), other.view(bits)):
        raise DataError(f"{name} and {other_name} should be the same numbers and are not", where, "files of one checkpoint")
