"""The collectives of a compiled program: what XLA made of those that our code asks for, and what it added.

Read from the text of the program, `jax.stages.Compiled.as_text()`. XLA may merge several collectives into one instruction, do a sum in
another dtype (bfloat16 on a CPU becomes float32), or add some of its own, as the sums of a norm over shards need.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mtnlg.plan.issued import Collective
from mtnlg.plan.lowered import DTYPES, axes_of, cycles, why

OURS = "shard_map"  # in the name of every operation that spmd.py wrote
MAX_ADDED_BYTES = 4096  # of one instruction

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\(")
_KINDS = re.compile(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(-start)?")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%([\w.-]+)|branch_computations=\{([^}]*)\}")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LISTED = re.compile(r"replica_groups=\{\{([0-9,{}]*)\}\}")
_IOTA = re.compile(r"replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([0-9,]+)\](?:T\(([0-9,]+)\))?\))? \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{\{([0-9,{}]*)\}\}")
_ALL = re.compile(r"replica_groups=\{\}")


class Operand(NamedTuple):
    """One array that an instruction sends, and the whole name of the operation that wanted it."""

    collective: Collective
    rank: int
    op_name: str

    @property
    def is_ours(self) -> bool:
        return OURS in self.op_name.split("/")


class Instruction(NamedTuple):
    """A collective of the program: several operands when XLA merged several."""

    name: str
    operands: tuple[Operand, ...]


def count(text: str, degrees: dict[str, int], trips: Mapping[str, int]) -> Counter:
    """{instruction: how often it runs}; a loop whose number of turns XLA does not know, and a branch, as in `lowered.count`."""
    computations, entry = _computations(text)
    found: Counter = Counter()

    def visit(name: str, times: int):
        for line in computations[name]:
            instruction = _INSTRUCTION.match(line)
            if instruction is None:
                continue
            opcode = instruction[3]
            if _KINDS.fullmatch(opcode):
                found[_instruction(line, *instruction.groups(), degrees)] += times
                continue
            called = [name for one, several in _CALLED.findall(line) for name in ([one] if one else re.findall(r"%([\w.-]+)", several))]
            for name in called:
                visit(name, _times(line, opcode, times, trips))

    visit(entry, 1)
    return found


def _times(line: str, opcode: str, times: int, trips: Mapping[str, int]) -> int:
    """How often what an instruction calls runs when itself is run `times` times."""
    if opcode == "while":
        known = _TURNS.search(line)
        return times * int(known[1]) if known else trips[why(_op_name(line))]
    return trips.get(why(_op_name(line)), times) if opcode == "conditional" else times


def _op_name(line: str) -> str:
    found = re.search(r'op_name="([^"]*)"', line)
    return found[1].replace("\\'", "'") if found else ""


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """({name: its lines}, the name of the one that is run)."""
    found, entry, lines = {}, "", []
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            lines = found[begins[2]] = []
            entry = begins[2] if begins[1] else entry
        else:
            lines.append(line)
    return found, entry


def _instruction(line: str, name: str, result: str, opcode: str, degrees: dict[str, int]) -> Instruction:
    if opcode.endswith("-start"):
        raise NotImplementedError(f"{name} is asynchronous: only programs compiled for a CPU can be read")
    kind = opcode.replace("-", "_")
    groups = _groups(line, math.prod(degrees.values()))
    arrays = [(dtype, [int(n) for n in dims.split(",") if n]) for dtype, dims in _ARRAY.findall(result)]
    names = parted(_op_name(line))
    if len(names) != len(arrays):
        # Of several wishes it is not known which is whose: nobody's, if one of them is not ours.
        names = [next((n for n in names if OURS not in n.split("/")), names[0])] * len(arrays)
    operands = []
    for (dtype, dims), wanted_by in zip(arrays, names, strict=True):
        # The text shows what comes out; a collective's operand is what goes in.
        elements = math.prod(dims)
        if kind == "all_gather":
            elements //= len(groups[0])
        if kind == "reduce_scatter":
            elements *= len(groups[0])
        collective = Collective(kind, axes_of(groups, degrees), why(wanted_by), DTYPES.get(dtype, dtype), elements)
        operands.append(Operand(collective, len(dims), wanted_by))
    return Instruction(name, tuple(operands))


def parted(op_name: str) -> list[str]:
    """The names of the operations that XLA merged: `a/(b/c:d)` is a/b/c and a/d."""
    begin = 0 if op_name.startswith("(") else op_name.find("/(") + 1
    if (begin == 0 and not op_name.startswith("(")) or not op_name.endswith(")"):
        return [op_name]
    parts, depth = [""], 0
    for letter in op_name[begin + 1 : -1]:
        depth += (letter == "(") - (letter == ")")
        if letter == ":" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if len(parts) == 1:
        return [op_name]
    return [name for part in parts for name in parted(op_name[:begin] + part)]


def _groups(line: str, num_devices: int) -> list[list[int]]:
    """Which devices speak with each other, in any of the ways in which XLA writes it."""
    if listed := _LISTED.search(line):
        return [_numbers(group) for group in listed[1].split("},{")]
    if pairs := _PAIRS.search(line):
        return cycles([_numbers(pair) for pair in pairs[1].split("},{")])
    if iota := _IOTA.search(line):
        return _laid_out(iota[2], iota[3]).reshape(_numbers(iota[1])).tolist()
    if named := _NAMED.search(line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        devices = _laid_out(named[2], named[3]) if named[2] else np.arange(num_devices)
        along = [list(axes).index(axis) for axis in re.findall(r"'(\w+)'", named[4])]
        last = np.moveaxis(devices.reshape([int(n) for n in axes.values()]), along, range(-len(along), 0))
        return last.reshape(-1, math.prod(last.shape[-len(along) :])).tolist()
    if _ALL.search(line):
        return [list(range(num_devices))]
    raise NotImplementedError(f"groups of devices in a way that is new here: {line.strip()[:300]}")


def _laid_out(shape: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... in `shape`, its dims put into another order."""
    numbers = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return numbers.transpose(_numbers(order) if order else None).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def strangers(instructions: Counter) -> list[str]:
    """What breaks the third promise: everything that spmd.py did not write must be a few scalars."""
    found = []
    for instruction in instructions:
        added = [operand for operand in instruction.operands if not operand.is_ours]
        num_bytes = sum(operand.collective.num_bytes for operand in added)
        if any(operand.rank for operand in added) or num_bytes > MAX_ADDED_BYTES:
            kinds = ", ".join(sorted({f"{o.collective.kind} of rank {o.rank} ({o.op_name})" for o in added}))
            found.append(f"{instruction.name}: {num_bytes:,} bytes outside {OURS}: {kinds}")
    return found


def differences(lowered: Counter, instructions: Counter) -> list[str]:
    """What XLA did to the collectives of the lowered program, a line each, by why; then what it added."""
    before, after, num_instructions, added = defaultdict(Counter), defaultdict(Counter), Counter(), defaultdict(Counter)
    for collective, times in lowered.items():
        before[collective.why][collective] += times
    for instruction, times in instructions.items():
        for operand in instruction.operands:
            (after if operand.is_ours else added)[operand.collective.why][operand.collective] += times
        for name in {operand.collective.why for operand in instruction.operands if operand.is_ours}:
            num_instructions[name] += times
    lines = []
    for name in {**before, **after}:
        if before[name] != after[name]:
            lines.append(f"{name}: {_summary(before[name])} became {_summary(after[name])}")
        if num_instructions[name] < after[name].total():
            lines.append(f"{name}: {after[name].total()} arrays go in {num_instructions[name]} merged")
    everything = sum(added.values(), Counter())
    if everything:
        lines.append(f"added by XLA outside {OURS} (for norms and clipping): {_summary(everything)}")
    return lines


def _summary(collectives: Counter) -> str:
    times, num_bytes = Counter(), Counter()
    for collective, n in collectives.items():
        what = f"{collective.kind} of {collective.dtype} over {'+'.join(collective.axes)}"
        times[what] += n
        num_bytes[what] += n * collective.num_bytes
    return ", ".join(f"{times[what]} {what} ({num_bytes[what]:,} bytes)" for what in sorted(times)) or "nothing"
