"""Times a step on two pipeline stages against the same step without stages: what the executor costs.

Both have the same model, batch, microbatches and recomputation; in one process the two programs take turns, step by step, and the
samples (fresh processes) of all settings take turns too. The stages are two virtual devices on the cores that the one device has for
itself. On one core a stage that waits leaves it to the other, and the quotient is the executor's own work; on two, the time in which a
stage has nothing to do is in it too. Processor seconds say the same on a busy machine, where wall seconds do not.

COMMAND: python -m benchmarks.pipeline --schedules=1f1b,zb_v --recompute=none,full --cores=1,2
"""

import argparse
import dataclasses
import itertools
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np

from benchmarks.train_step import SIZES
from mtnlg.core import schema

NUM_MICROBATCHES = 8


def sample(size: str, schedule: str, recompute: str, cores: str, num_steps: int) -> list[list[float]]:
    """One process's median step: [[seconds, processor seconds] without stages, the same on two]."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    from mtnlg.launch import allocator

    allocator.keep_freed_pages()
    import jax

    from mtnlg.parallel import mesh as meshes
    from mtnlg.parallel import timetable
    from mtnlg.train import state as states
    from mtnlg.train import step as steps

    model, _ = SIZES[size]
    train = schema.Train(batch_size=2 * NUM_MICROBATCHES, microbatch_size=2, recompute=recompute)
    alone = schema.Config(model=model, train=train)
    staged = dataclasses.replace(alone, mesh=schema.Mesh(pipe=2), pipeline=schema.Pipeline(schedule=schedule))
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (NUM_MICROBATCHES, 2, model.seq_len + 1), np.int32)
    ones = np.ones_like(tokens[..., 1:])
    batch = {"tokens": tokens[..., :-1], "targets": tokens[..., 1:], "positions": ones.cumsum(-1, dtype=np.int32) - 1}
    batch |= {"segment_ids": ones, "weights": ones.astype(np.float32)}

    def runner(config):
        mesh = meshes.make(config.mesh)
        state, program = states.make(config, mesh), steps.make(config, mesh)
        fields, table = meshes.put_rows(mesh, batch, 2), timetable.on_mesh(config, mesh, NUM_MICROBATCHES)

        def step(number):
            nonlocal state
            start = _seconds()
            state, metrics = program(state, fields, NUM_MICROBATCHES, number, 1e-4, False, table)
            jax.block_until_ready((state, metrics))
            return _seconds() - start

        return step

    runners = [runner(config) for config in (alone, staged)]
    seconds = [[step(number) for step in runners] for number in range(num_steps + 1)]
    return np.median(seconds[1:], axis=0).tolist()


def _seconds() -> np.ndarray:
    """[on the wall, of the processor]."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="S", help="S, M or both, as in benchmarks.train_step (default: S)")
    parser.add_argument("--schedules", default="1f1b", help=f"of {', '.join(schema.SCHEDULES)} (default: 1f1b)")
    parser.add_argument("--recompute", default="none,full", help="of none, selective, full (default: none,full)")
    parser.add_argument("--cores", default="1,2", help="that both have, of 1, 2 (default: both)")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each setting (default: 3)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a process (default: 6)")
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        print(json.dumps(sample(*options.sample.split(","), options.steps)))
        return
    settings = list(itertools.product(*(o.split(",") for o in (options.sizes, options.schedules, options.recompute, options.cores))))
    results: dict[tuple, list] = {setting: [] for setting in settings}
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    for round_number, setting in itertools.product(range(options.repeats), settings):
        print(f"round {round_number + 1}/{options.repeats}: {' '.join(setting)}", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks.pipeline", f"--sample={','.join(setting)}", f"--steps={options.steps}"]
        child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        results[setting].append(json.loads(child.stdout.splitlines()[-1]))
    print("| step | schedule | recompute | cores | without stages, s | two stages, s | quotient, median (range) | of processor seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for setting, samples in results.items():
        alone, staged = np.median(samples, axis=0)[:, 0]
        quotients = np.array([np.divide(b, a) for a, b in samples])
        spread = [f"{np.median(q):.2f} ({min(q):.2f}-{max(q):.2f})" for q in quotients.T]
        print(f"| {' | '.join(setting)} | {alone:.2f} | {staged:.2f} | {' | '.join(spread)} |")


if __name__ == "__main__":
    main()
