"""The collectives of a program before XLA has touched it: what our code asks for, counted in its StableHLO."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh

from mtnlg.plan.issued import Collective

KINDS = {"stablehlo.all_reduce", "stablehlo.all_gather", "stablehlo.reduce_scatter", "stablehlo.all_to_all", "stablehlo.collective_permute"}
BRANCHES = {"stablehlo.case", "stablehlo.if"}
DTYPES = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16", "i1": "bool", "i32": "int32", "s32": "int32"}
NO_AXES = ("no axes of the mesh",)  # groups that no set of axes has


def count(lowered, mesh: Mesh, trips: Mapping[str, int]) -> Counter:
    """{collective: how often it runs} of a `jax.stages.Lowered`.

    A loop runs as often as its constant bound says; with a traced bound, as `trips` says by its name: turns of all its runs together.
    So does a branch that is named there; of any other that may not run everything counts.
    """
    functions = {_text(op, "sym_name"): op for op in lowered.compiler_ir("stablehlo").body.operations}
    found: Counter = Counter()

    def visit(operation, times: int):
        for op in itertools.chain.from_iterable(_read(block) for region in operation.regions for block in region.blocks):
            if op.name in KINDS:
                for operand in op.operands:
                    found[_collective(op, operand, mesh)] += times
            elif op.name == "func.call":
                visit(functions[_text(op, "callee")].operation, times)
            else:
                visit(op, _times(op, times, trips))

    visit(functions["main"].operation, 1)
    return found


def _read(block) -> list:
    """The operations of a block, but for those whose results nobody reads: JAX leaves them, and XLA never runs them."""
    kept, unread = [], set()
    for op in reversed([op.operation for op in block.operations]):
        if op.results and all(use.owner.operation in unread for result in op.results for use in result.uses):
            unread.add(op)
        else:
            kept.append(op)
    return kept


def _times(op, times: int, trips: Mapping[str, int]) -> int:
    """How often what is inside an operation runs that itself is run `times` times."""
    if op.name == "stablehlo.while":
        turns = _turns(op)
        return trips[why(op.location.name_str)] if turns is None else times * turns
    return trips.get(why(op.location.name_str), times) if op.name in BRANCHES else times


def _text(op, attribute: str) -> str:
    return str(op.attributes[attribute]).strip('@"')


def _collective(op, operand, mesh: Mesh) -> Collective:
    kind = op.name.removeprefix("stablehlo.")
    if kind == "collective_permute":
        groups = cycles(np.array(op.attributes["source_target_pairs"]).tolist())
    else:
        groups = np.array(op.attributes["replica_groups"]).tolist()
    axes = axes_of(groups, dict(mesh.shape))
    dtype = str(operand.type.element_type)
    return Collective(kind, axes, why(op.location.name_str), DTYPES.get(dtype, dtype), math.prod(operand.type.shape))


def _turns(loop) -> int | None:
    """How often a `stablehlo.while` runs that counts up from 0, as all of JAX's do; None for a traced bound."""
    compare = loop.regions[0].blocks[0].operations[-1].operands[0].owner
    bound = compare.operands[1].owner
    return int(np.array(bound.attributes["value"])) if getattr(bound, "name", None) == "stablehlo.constant" else None


def why(op_name: str) -> str:
    """The `why` of core/collectives.py in the name of an operation: its last scope, without the marks of JAX's transformations."""
    scope = op_name.split("/")[-2:][0]
    return re.sub(r"^(\w+\()*|\)*$", "", scope)


def axes_of(groups: list[list[int]], degrees: dict[str, int]) -> tuple[str, ...]:
    """The axes of the mesh along which exactly these devices, by their place in it, form groups."""
    wanted = {frozenset(group) for group in groups}
    long = [axis for axis, degree in degrees.items() if degree > 1]
    for number in range(1, len(long) + 1):
        for axes in itertools.combinations(long, number):
            if groups_of(axes, degrees) == wanted:
                return axes
    return NO_AXES


def cycles(pairs: list[list[int]]) -> list[list[int]]:
    """The rings of devices of a permutation's pairs (source, target)."""
    to, found = dict(pairs), []
    while to:
        ring, device = [], next(iter(to))
        while device in to:
            ring.append(device)
            device = to.pop(device)
        found.append(ring)
    return found


def groups_of(axes: tuple[str, ...], degrees: dict[str, int]) -> set[frozenset[int]]:
    """The groups of devices that differ along `axes` only."""
    names = list(degrees)
    places = np.arange(math.prod(degrees.values())).reshape(*degrees.values())
    last = np.moveaxis(places, [names.index(axis) for axis in axes], range(-len(axes), 0))
    return {frozenset(row) for row in last.reshape(-1, math.prod(degrees[axis] for axis in axes)).tolist()}
