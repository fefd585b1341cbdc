"""Lists, verifies, shows, compares and exports checkpoints.

  ls PATH        the checkpoints of a run, with what was set aside
  verify PATH    every file against its hash, of an exported folder too; exit code 65 when one is damaged
  show PATH      what a checkpoint holds: its place in the run, config keys, every array; --stats reads them
  diff A B       config keys and arrays in which two checkpoints differ
  export PATH OUT   a run with the weights alone, its config and its tokenizer: what generates, a third of the bytes

PATH is a run's folder (show, diff, export: its newest checkpoint) or one of its checkpoints/STEP.
"""

import argparse
import math
import pathlib

VERBS = ("ls", "verify", "show", "diff", "export")
PARTS = ("params", "optimizer")
PLACE = ("step", "samples", "tokens", "tokenizer_sha256")
STATS = ("mean", "deviation", "least", "most", "not finite")
_ASIDE = {
    ".corrupt": "damaged, set aside",
    ".rolledback": "had read what a rollback has left out",
    ".replaced": "replaced by a later save of this step",
    ".saving": "a save that has not ended",
    ".deleting": "being deleted",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s (ls | verify | show | diff | export) PATH [OTHER] [--stats]"
    parser.add_argument("what", choices=VERBS, metavar="|".join(VERBS), help="what to do")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run's folder, or one of its checkpoints/STEP")
    parser.add_argument("--stats", action="store_true", help="show: mean, deviation and extremes of every array")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    from mtnlg.cli import runtime
    from mtnlg.core.errors import ConfigError

    wanted = 2 if options.what in ("diff", "export") else 1
    if rest or len(options.paths) != wanted:
        raise ConfigError(f"{options.what} takes {wanted} path{'s' * (wanted > 1)}", "command line", "python -m mtnlg ckpt --help")
    runtime.prepare()
    return {"ls": _list, "verify": _verify, "show": _show, "diff": _diff, "export": _export}[options.what](options)


def _list(options: argparse.Namespace) -> int:
    from mtnlg import checkpoint
    from mtnlg.core.errors import MissingInput
    from mtnlg.plan import text

    path = pathlib.Path(options.paths[0])
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    rows = [("step", "samples", "tokens", "bytes", "saved", "")]
    for step in checkpoint.whole_steps(directory):
        meta = checkpoint.meta(directory / str(step))
        place = (str(step), f"{meta['samples']:,}", f"{meta['tokens']:,}")
        rows.append((*place, text.size(_bytes(directory / str(step))), _date(directory / str(step)), ""))
    for aside in sorted(directory.glob("*.*")):
        if aside.is_dir():
            rows.append((aside.name, "", "", text.size(_bytes(aside)), _date(aside), _ASIDE.get(aside.suffix.rstrip("0123456789"), "")))
    if len(rows) == 1:
        raise MissingInput("there is no checkpoint", str(path), "a run's folder, or its checkpoints")
    print("\n".join(text.table(rows, "<>>><<")))
    return 0


def _bytes(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _date(path: pathlib.Path) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "seconds")


def _verify(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mtnlg import checkpoint
    from mtnlg.core import manifest
    from mtnlg.core.errors import DataError

    path = pathlib.Path(options.paths[0])
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [directory / str(step) for step in checkpoint.whole_steps(directory)]
    steps = steps or [path if (path / manifest.NAME).is_file() else checkpoint.find(path)]
    is_damaged = False
    for step_dir in tqdm(steps, desc="verify", leave=False, disable=None):
        found = manifest.problems(step_dir)
        is_damaged |= bool(found)
        print("\n".join(f"{step_dir}: {problem}" for problem in found or ["whole"]), flush=True)
    return DataError.exit_code if is_damaged else 0


def _show(options: argparse.Namespace) -> int:
    from mtnlg import checkpoint
    from mtnlg.core import config as configs
    from mtnlg.core import schema
    from mtnlg.core.tree import by_path
    from mtnlg.plan import text

    step_dir = checkpoint.find(options.paths[0])
    meta = checkpoint.meta(step_dir)
    print(f"{step_dir}: step {meta['step']}, {meta['samples']:,} samples, {meta['tokens']:,} tokens")
    defaults, stored = configs.flatten(configs.to_nested(schema.Config())), configs.flatten(meta["config"])
    print("\n".join(f"  {key} = {stored[key]}" for key in stored if stored[key] != defaults.get(key)))
    for part in (part for part in PARTS if checkpoint.has(step_dir, part)):
        leaves = checkpoint.stored_arrays(step_dir, part) if options.stats else by_path(checkpoint.stored_shapes(step_dir, part))
        rows = [_row(name, leaf, options.stats) for name, leaf in leaves.items()]
        num_bytes = sum(_num_bytes(leaf) for leaf in leaves.values())
        print(f"\n{part}: {len(rows)} arrays, {text.size(num_bytes)}")
        heads = ("array", "shape", "dtype", "bytes", *(STATS if options.stats else ()))
        print("\n".join(text.table([heads, *rows], "<<<>" + ">" * len(STATS) * options.stats)))
    return 0


def _row(name: str, leaf, with_stats: bool) -> tuple[str, ...]:
    import numpy as np

    from mtnlg.plan import text

    row = (name, str(list(leaf.shape)), str(leaf.dtype), text.size(_num_bytes(leaf)))
    if not with_stats:
        return row
    values = leaf.astype(np.float64)
    finite = values[np.isfinite(values)]
    numbers = [f"{one:.3g}" for one in (finite.mean(), finite.std(), finite.min(), finite.max())] if finite.size else ["-"] * 4
    return (*row, *numbers, str(values.size - finite.size))


def _num_bytes(leaf) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _diff(options: argparse.Namespace) -> int:
    from mtnlg import checkpoint
    from mtnlg.core import config as configs
    from mtnlg.plan import text

    here, there = map(checkpoint.find, options.paths)
    metas = [checkpoint.meta(one) for one in (here, there)]
    flat = [configs.flatten(meta["config"]) | {key: meta[key] for key in PLACE} for meta in metas]
    keys = [key for key in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(key) != flat[1].get(key)]
    rows = [(key, str(flat[0].get(key, "-")), str(flat[1].get(key, "-"))) for key in keys]
    lines = text.table([("", str(here), str(there)), *rows], "<<<") if rows else []
    for part in PARTS:
        arrays = [checkpoint.stored_arrays(one, part) if checkpoint.has(one, part) else {} for one in (here, there)]
        found = [(name, _difference(*(one.get(name) for one in arrays))) for name in dict.fromkeys([*arrays[0], *arrays[1]])]
        found = [(name, said) for name, said in found if said]
        if found:
            lines += ["", f"{part}: {len(found)} of {len(arrays[0] | arrays[1])} arrays differ", *text.table(found, "<<")]
    print("\n".join(lines) or "no difference")
    return 0


def _difference(here, there) -> str:
    """In what two arrays differ, in words: nothing where they are equal, or where both are not a number."""
    import numpy as np

    if here is None or there is None:
        return f"only in the {'second' if here is None else 'first'}"
    if (here.shape, here.dtype) != (there.shape, there.dtype):
        return f"{here.dtype}{list(here.shape)} and {there.dtype}{list(there.shape)}"
    if np.array_equal(here, there, equal_nan=here.dtype.kind == "f"):
        return ""
    here, there = here.astype(np.float64), there.astype(np.float64)
    share = np.nanmax(np.abs(here - there)) / (np.nanmax(np.abs(there)) or 1.0)
    return f"{np.count_nonzero(here != there):,} of {here.size:,} numbers, up to {share:.2g} of the largest"


def _export(options: argparse.Namespace) -> int:
    from mtnlg import convert, weights
    from mtnlg.plan import text

    path, out = options.paths
    opened = weights.open_weights(path, "run")
    convert.to_run(opened, out, convert.identity(opened.where))
    print(f"{out}: step {opened.meta['step']}, {weights.num_params(opened.model):,} parameters, {text.size(_bytes(pathlib.Path(out)))}")
    return 0
