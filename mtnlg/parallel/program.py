"""A schedule as the executor reads it: for each tick and stage, what to do and which slots of memory to read and write.

Each stage has three rings of slots. Its mailbox keeps what arrived until it is read; `kept` is what a forward leaves to its B, `deferred`
what B leaves to its W. What nobody needs has the number of slots as its slot: the mailbox has one more for that; of the
others nothing is read or written then.
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from mtnlg.parallel.table import Op, Schedule


class Program(NamedTuple):
    """int32 [T, P] each, but for the three sizes. What is idle or not needed is 0 in ids and the spare slot in slots."""

    op: np.ndarray
    microbatch: np.ndarray
    chunk: np.ndarray
    virtual_stage: np.ndarray
    mail: np.ndarray  # slot read: the input of F and R, the cotangent of B; for the model's last B, the output of its F
    from_previous: np.ndarray  # slot in which the message of stage p - 1 (mod P) is laid after this tick's op
    from_next: np.ndarray  # that of stage p + 1 (mod P); none with two stages, where it is the previous one as well
    from_self: np.ndarray  # that of the stage itself
    kept: np.ndarray  # slot that F, or R where there is one, writes, and B reads
    deferred: np.ndarray  # slot that B writes and W reads
    num_mail: int  # slots without the spare, whose index this is
    num_kept: int
    num_deferred: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.num_mail, self.num_kept, self.num_deferred


# The ring whose slots a field names, in the order of Program's fields.
_RING_OF = {"mail": "mail", "from_previous": "mail", "from_next": "mail", "from_self": "mail", "kept": "kept", "deferred": "deferred"}


class _Life(NamedTuple):
    """One value in a ring: its slot is taken in ticks start to end - 1, and stands in the columns `cells` of (field, tick)."""

    start: int
    end: int
    cells: list[tuple[str, int]]


def compile(schedule: Schedule, sizes: tuple[int, int, int] | None = None) -> Program:
    """The program of a schedule that has no problems. sizes: of mailbox, kept and deferred; None: as many slots as are needed."""
    rings = _lives(schedule)
    coloured = {ring: [_coloured(lives) for lives in stages] for ring, stages in rings.items()}
    needed = tuple(max(num_slots for _, num_slots in stages) for stages in coloured.values())
    sizes = needed if sizes is None else sizes
    assert all(size >= least for size, least in zip(sizes, needed, strict=True)), f"{needed} slots are needed, {sizes} are given"
    spare = dict(zip(rings, sizes, strict=True))
    fields = {field: np.full(schedule.ops.shape, spare[ring], np.int32) for field, ring in _RING_OF.items()}
    for ring, stages in rings.items():
        for stage, lives in enumerate(stages):
            for life, slot in zip(lives, coloured[ring][stage][0], strict=True):
                for field, tick in life.cells:
                    fields[field][tick, stage] = slot
    ids = (schedule.ops, schedule.microbatches, schedule.chunks, schedule.virtual_stages)
    return Program(*ids, *fields.values(), *sizes)


def common_sizes(programs: Iterable[Program]) -> tuple[int, int, int]:
    """Rings large enough for each of several programs (the batch sizes of a ramp, say)."""
    return tuple(max(sizes) for sizes in zip(*(program.sizes for program in programs), strict=True))


def pad(program: Program, num_ticks: int) -> Program:
    """The same work, then idle ticks, so that there are num_ticks: programs of one shape."""
    sizes = dict(zip(("mail", "kept", "deferred"), program.sizes, strict=True))
    missing = num_ticks - len(program.op)

    def longer(field: str) -> np.ndarray:
        idle = sizes[_RING_OF[field]] if field in _RING_OF else 0
        return np.pad(getattr(program, field), ((0, missing), (0, 0)), constant_values=idle)

    return program._replace(**{field: longer(field) for field in Program._fields if not field.startswith("num_")})


def _lives(schedule: Schedule) -> dict[str, list[list[_Life]]]:
    """For each ring and stage the values that pass through it."""
    last, num_stages, recomputes = schedule.placement.size - 1, len(schedule.placement), schedule.recomputes
    when = {task: (tick, stage) for tick, stage, task in schedule.tasks()}
    mail, kept, deferred = ([[] for _ in range(num_stages)] for _ in range(3))
    for task, (tick, stage) in when.items():
        op, microbatch, virtual_stage = task
        readers = [reader for reader in _readers(*task, last, recomputes) if reader in when]
        if readers:
            receiver = when[readers[0]][1]
            reads = [when[reader][0] for reader in readers]
            # A message is laid down after the ops of a tick: a slot read for the last time in that tick may take it.
            cells = [(_route(stage, receiver, num_stages), tick), *(("mail", read) for read in reads)]
            mail[receiver].append(_Life(tick, reads[-1], cells))
        if op == (Op.R if recomputes else Op.F) and (Op.B, microbatch, virtual_stage) in when:
            read, _ = when[Op.B, microbatch, virtual_stage]
            kept[stage].append(_Life(tick, read + 1, [("kept", tick), ("kept", read)]))
        if op == Op.B:
            read, _ = when[Op.W, microbatch, virtual_stage]
            deferred[stage].append(_Life(tick, read + 1, [("deferred", tick), ("deferred", read)]))
    return {"mail": mail, "kept": kept, "deferred": deferred}


def _readers(op: Op, microbatch: int, virtual_stage: int, last: int, recomputes: bool) -> list[tuple[Op, int, int]]:
    """Who may read the message that an op sends, all on one stage, the last reader at the end."""
    if op == Op.F and virtual_stage == last:
        return [(Op.B, microbatch, last)]
    if op == Op.F:
        return [(reader, microbatch, virtual_stage + 1) for reader in ((Op.F, Op.R) if recomputes else (Op.F,))]
    return [(Op.B, microbatch, virtual_stage - 1)] if op == Op.B and virtual_stage > 0 else []


def _route(sender: int, receiver: int, num_stages: int) -> str:
    if sender == receiver:
        return "from_self"
    return "from_previous" if sender == (receiver - 1) % num_stages else "from_next"


def _coloured(lives: list[_Life]) -> tuple[list[int], int]:
    """A slot for each life, none shared at one time, and how many there are: as few as lives overlap."""
    slots, taken, free, num_slots = [0] * len(lives), [], [], 0
    for index in sorted(range(len(lives)), key=lambda index: lives[index].start):
        while taken and taken[0][0] <= lives[index].start:
            heappush(free, heappop(taken)[1])
        if not free:
            heappush(free, num_slots)
            num_slots += 1
        slots[index] = heappop(free)
        heappush(taken, (lives[index].end, slots[index]))
    return slots, num_slots
