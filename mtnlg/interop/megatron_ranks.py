"""The files of a Megatron-LM checkpoint put together: tensor ranks, pipeline stages and their virtual stages as one set of tensors."""

import functools
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from mtnlg.core.errors import DataError, MissingInput
from mtnlg.interop import megatron_shards
from mtnlg.interop.megatron_names import EMBEDDING, HEAD, moved, num_layers, plain
from mtnlg.interop.megatron_shards import Rows
from mtnlg.interop.tensors import Stored

TRACKER, RELEASE, FILE = "latest_checkpointed_iteration.txt", "release", "model_optim_rng.pt"
WHOLE = "the whole checkpoint, copied again"
MAX_TRACKER_BYTES = 100

Rank = tuple[int, int]  # (tensor, pipeline)
Parts = list[dict[str, np.ndarray]]  # the virtual stages of a rank, one or more, each {name: array}


def rank_folder(rank: Rank, num_stages: int) -> str:
    """What Megatron calls the folder of a rank."""
    return f"mp_rank_{rank[0]:02d}" + (f"_{rank[1]:03d}" if num_stages > 1 else "")


def find(path: str | os.PathLike) -> pathlib.Path:
    """The folder with the ranks' folders: PATH itself, or the one of PATH that its tracker names. Raises MissingInput, DataError."""
    root = pathlib.Path(path)
    tracker = root / TRACKER
    if not tracker.is_file():
        return root
    try:
        with tracker.open("rb") as file:
            word = file.read(MAX_TRACKER_BYTES).decode().strip()
        return root / (RELEASE if word == RELEASE else f"iter_{int(word):07d}")
    except OSError as error:
        raise MissingInput(f"cannot be read: {error.strerror}", str(tracker), WHOLE) from None
    except ValueError:
        raise DataError(f"neither a number nor {RELEASE}", str(tracker), "the folder iter_NNNNNNN itself") from None


def files_of(folder: pathlib.Path) -> dict[Rank, pathlib.Path]:
    """The file of each rank, all there. Raises MissingInput, DataError."""
    found: dict[Rank, pathlib.Path] = {}
    for inside in sorted(folder.glob("mp_rank_*")):
        name = re.fullmatch(r"mp_rank_(\d{1,6})(?:_(\d{1,6}))?", inside.name)
        if name is None:
            raise DataError(f"{inside.name} is of a mixture of experts, or of nothing known", str(folder), "a model without experts")
        rank = (int(name[1]), int(name[2] or 0))
        if rank in found:
            raise DataError(f"{found[rank].parent.name} and {inside.name} are the same rank", str(folder), "files of one checkpoint")
        found[rank] = inside / FILE
    if not found:
        if any(folder.glob("*.distcp")) or (folder / ".metadata").is_file():
            what = "a checkpoint of torch.distributed, which is not read here"
            raise DataError(what, str(folder), "Megatron-LM's --ckpt-convert-format torch, then the folder that it saves")
        cure = f"a folder with {TRACKER}, or one with {rank_folder((0, 0), 1)}/{FILE}"
        raise MissingInput("no Megatron-LM checkpoint is there", str(folder), cure)
    num_ranks, num_stages = (max(rank[axis] for rank in found) + 1 for axis in (0, 1))
    lost = num_ranks * num_stages - len(found)
    gone = [file for file in found.values() if not file.is_file()]
    if lost or gone:
        what = f"{lost} of {num_ranks} x {num_stages} ranks are not there" if lost else f"{gone[0].parent.name} has no {FILE}"
        raise MissingInput(what, str(folder), WHOLE)
    return found


class Sharded:
    """Tensors by their plain names, each joined from the tensor ranks' parts when it is read. The last one read is kept.

    tied: the last stage's copy of the embedding must be the embedding. Raises DataError for parts that do not fit together.
    """

    def __init__(self, parts: Mapping[str, list[np.ndarray]], rows: Rows, tied: bool, where: str):
        self.where, self._rows = where, rows
        self._parts = dict(parts)
        self._copy = self._parts.pop(HEAD, None) if tied else None
        self._stored = {name: Stored(megatron_shards.shape(name, ranks, where), ranks[0].dtype) for name, ranks in self._parts.items()}
        self.read = functools.lru_cache(1)(self._read)

    def stored(self) -> dict[str, Stored]:
        return self._stored

    def _read(self, name: str) -> np.ndarray:
        if name == EMBEDDING and self._copy is not None:
            for rank, (ours, copied) in enumerate(zip(self._parts[name], self._copy, strict=True)):
                megatron_shards.require_same(f"{name} of tensor rank {rank}", ours, "its copy for the head", copied, self.where)
        return megatron_shards.join(name, self._parts[name], self._rows, self.where)


def gather(ranks: Mapping[Rank, Parts], where: str) -> tuple[dict[str, list[np.ndarray]], int]:
    """({plain name: its part on each tensor rank}, layers of the model). Raises DataError.

    Layers are counted through the first virtual stages of all stages, then through the second ones, and so on, as a pipeline runs.
    """
    num_ranks, num_stages = (max(rank[axis] for rank in ranks) + 1 for axis in (0, 1))
    num_parts = {len(parts) for parts in ranks.values()}
    if len(num_parts) != 1:
        raise DataError(f"ranks have {sorted(num_parts)} virtual stages", where, "files of one checkpoint")
    gathered: dict[str, list[np.ndarray]] = {}
    before = 0
    for part in range(num_parts.pop()):
        for stage in range(num_stages):
            named = [_named(ranks[rank, stage][part], where) for rank in range(num_ranks)]
            for rank, one in enumerate(named[1:], 1):
                if different := sorted(one.keys() ^ named[0].keys()):
                    raise DataError(f"tensor ranks 0 and {rank} differ in having {different[0]}", where, "files of one checkpoint")
            for name in named[0]:
                if moved(name, before) in gathered:
                    raise DataError(f"two stages have {name}", where, "files of one checkpoint")
                gathered[moved(name, before)] = [one[name] for one in named]
            before += num_layers(named[0])
    return gathered, before


def _named(part: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    named = {plain(name): value for name, value in part.items()}
    if len(named) < len(part):
        raise DataError("two tensors of a rank have names of the same meaning", where, "a checkpoint that Megatron-LM has saved")
    return named
