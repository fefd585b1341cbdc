"""The collectives of a program before XLA has touched it: what our code asks for, counted in its StableHLO."""

import functools
import itertools
import math
import re
from collections import Counter

import numpy as np
from jax.sharding import Mesh

from mtnlg.plan.collectives import Collective

KINDS = {"stablehlo.all_reduce", "stablehlo.all_gather", "stablehlo.reduce_scatter", "stablehlo.all_to_all", "stablehlo.collective_permute"}
DTYPES = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16", "i1": "bool", "i32": "int32", "s32": "int32"}
NO_AXES = ("no axes of the mesh",)  # groups that no set of axes has


def count(lowered, mesh: Mesh, num_microbatches: int = 1) -> Counter:
    """{collective: how often it runs} of a `jax.stages.Lowered`.

    A scan runs as often as its constant bound says. A loop with a traced bound, which only the one over microbatches is here, runs
    `num_microbatches` times. Of a branch that may not run everything counts.
    """
    functions = {_text(op, "sym_name"): op for op in lowered.compiler_ir("stablehlo").body.operations}

    @functools.cache
    def of_function(name: str) -> Counter:
        return of_regions(functions[name].operation)

    def of_regions(operation) -> Counter:
        found = Counter()
        for op in itertools.chain.from_iterable(block.operations for region in operation.regions for block in region.blocks):
            op = op.operation
            if op.name in KINDS:
                found.update(_collective(op, operand, mesh) for operand in op.operands)
            elif op.name == "func.call":
                found.update(of_function(_text(op, "callee")))
            elif inside := of_regions(op):
                times = _trips(op, num_microbatches) if op.name == "stablehlo.while" else 1
                found.update({collective: times * number for collective, number in inside.items()})
        return found

    return of_function("main")


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


def _trips(loop, num_microbatches: int) -> int:
    """How often a `stablehlo.while` runs that counts up from 0, as all of JAX's do."""
    compare = loop.regions[0].blocks[0].operations[-1].operands[0].owner
    bound = compare.operands[1].owner
    if getattr(bound, "name", None) != "stablehlo.constant":
        return num_microbatches
    return int(np.array(bound.attributes["value"]))


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
