"""Figure 1: kill -9, wherever a run is, and started again until it ends."""

import pathlib
import signal

from benchmarks.figures import Figure
from benchmarks.soak_train.runs import STEPS, Inputs, differences

# One run's, one after the other: four in a save, two each in a restore and in a step, one each in preparing data and in evaluating.
CHAIN = (
    "prepare",
    "restore",
    "batch,step:1",
    "save,step:2",
    "publish,step:2",
    "rename,step:2",
    "restore",
    "step,step:3",
    "save,step:4",
    f"evaluate,step:{STEPS}",
)
MESHES = {
    "one device": (),
    "ZeRO 2 over data": ("--config.mesh.data=4", "--config.mesh.zero=2"),
    "tensor and sequence": ("--config.mesh.tensor=2", "--config.mesh.sequence_parallel=true"),
    "ring attention": ("--config.mesh.context=2", "--config.mesh.data=2"),
    "stages": ("--config.mesh.pipe=2", "--config.train.microbatch_size=2"),
}


def kills(folder: pathlib.Path, chain: tuple[str, ...] = CHAIN, meshes: dict[str, tuple[str, ...]] = MESHES) -> Figure:
    """Every mesh's run is killed at every link of the chain, and ends with the bits of one that was not."""
    inputs, wrong, count = Inputs(folder), [], 0
    for number, (name, overrides) in enumerate(meshes.items()):
        whole, killed = inputs.whole(folder / f"whole{number}", *overrides), folder / f"killed{number}"
        for phase in chain:
            ended = inputs.run(inputs.command(killed, *overrides), f"kill@phase:{phase}")
            if ended.returncode != -signal.SIGKILL:
                wrong.append(f"{name}: {phase}: exit code {ended.returncode}: {ended.stderr[-200:]}")
            count += ended.returncode == -signal.SIGKILL
        ended = inputs.run(inputs.command(killed, *overrides))
        if ended.returncode:
            wrong.append(f"{name}: exit code {ended.returncode}: {ended.stderr[-200:]}")
        else:
            wrong += [f"{name}: {what} differs" for what in differences(whole, killed)]
    total = len(chain) * len(meshes)
    measured = f"{count} of {total} kills, {len(meshes)} runs; " + ("; ".join(wrong) if wrong else "the same bits")
    return Figure(f"{total} kills, every run ends with the bits of one without", measured, count == total and not wrong)
