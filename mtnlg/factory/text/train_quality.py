"""Learns what `filter --quality` scores by, from documents that are good and others that are to be judged."""

import dataclasses
import pathlib
from dataclasses import dataclass

from mtnlg.core.errors import ConfigError
from mtnlg.core.schema import key
from mtnlg.factory import folder, passes
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import Tally
from mtnlg.factory.text import quality


@dataclass(frozen=True)
class TrainQuality:
    """Learns a linear classifier of words and pairs of words from good documents, the input, and others.

    One document in ten is held out, and tells how well it does.
    """

    negative: tuple[str, ...] = key((), "files and folders of JSONL with what is to be judged: a crawl")
    num_epochs: int = key(3, "how often the documents are read")

    def check(self) -> None:
        """Raises ConfigError."""
        if not self.negative:
            raise ConfigError("there is nothing to tell the good documents from", "--negative", "--negative=PATH,...")
        if self.num_epochs < 1:
            raise ConfigError(f"num_epochs={self.num_epochs} is out of range", "--num_epochs", "1 or more")

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        """Raises what `check`, `quality.train` and `passes.run_alone` raise."""
        self.check()
        path, known = (
            pathlib.Path(output),
            {"inputs": Inputs(inputs).identity(), "negative": Inputs(self.negative, "--negative").identity()},
        )

        def make(tally: Tally) -> tuple[int, list[dict]]:
            trained = quality.train(inputs, self.negative, self.num_epochs)
            trained.classifier.save(path / quality.NAME)
            for label, number in (("learnt from", trained.trained), ("held out", trained.held_out), ("unreadable", trained.unreadable)):
                tally.count("documents", label, number)
            tally.sample("held out", {"accuracy": f"{trained.accuracy:.4f}", "AUC": f"{trained.auc:.4f}"})
            machine.say(f"{trained.held_out:,} documents held out: accuracy {trained.accuracy:.4f}, AUC {trained.auc:.4f}")
            size = (path / quality.NAME).stat().st_size
            return trained.trained + trained.held_out, [folder.part(quality.NAME, quality.sha256(path), size)]

        return passes.run_alone(path, {"stage": "train-quality", "options": dataclasses.asdict(self)} | known, machine, make)
