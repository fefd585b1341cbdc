"""Pretrains a model in a folder of its own. Started again with the same --workdir it goes on from the newest checkpoint."""

import argparse

from mtnlg.cli import keys, runtime
from mtnlg.core import config as configs
from mtnlg.core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --config=FILE.py --workdir=DIR [--dry_run] [--config.key=value ...]"
    parser.epilog = keys.describe_all()
    parser.add_argument("--workdir", help="the run's folder: config, metrics, checkpoints, samples, curves")
    parser.add_argument("--dry_run", action="store_true", help="compile the step and print sizes; read no data, train nothing")


def run(options: argparse.Namespace, config_arguments: list[str]) -> int:
    config = configs.resolve(config_arguments)
    runtime.prepare(config)
    if options.dry_run:
        from mtnlg.parallel import processes
        from mtnlg.train import dry_run

        description = dry_run.describe(config)
        if processes.is_first():
            print(description)
        return 0
    if not options.workdir:
        raise ConfigError("no folder is named for the run", "command line", "--workdir=runs/NAME")
    from mtnlg.pretrain.run import pretrain

    pretrain(config, options.workdir, configs.split_arguments(config_arguments)[1])
    return 0
