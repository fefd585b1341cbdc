"""Steps of the factory in a pipeline of datatrove, whose executors (local, Slurm, Ray) run it on many machines: between its JsonlReader
and its JsonlWriter (with expand_metadata=True) stands `Step("clean", Clean(min_chars=200).step)`.
"""

from collections.abc import Callable, Iterable, Iterator

from mtnlg.core import extras
from mtnlg.factory import stage
from mtnlg.factory.tally import Tally

SOURCE = "datatrove"  # of documents that name none


class Step:
    """What datatrove calls with an iterator of its documents; its `stats` are what the stage counts. Goes to workers pickled.

    make_step: called once in each task, as `Clean(...).step`. Fields beside id and text are in a document's metadata. Without samples.
    Raises ConfigError when datatrove is not installed.
    """

    def __init__(self, name: str, make_step: Callable[[], stage.Step]):
        with extras.needed("datatrove"):
            from datatrove.utils.stats import Stats

        self._name, self._make_step = name, make_step
        self.stats = Stats(repr(self))

    def __repr__(self) -> str:
        return f"mtnlg: {self._name}"

    def __call__(self, data: Iterable | None = None, rank: int = 0, world_size: int = 1) -> Iterator:
        step, total = self._make_step(), Tally()
        for given in data or ():
            with self.stats.time_stats:
                tally = Tally()
                made = _made(step, given, tally)
                total.add(tally)
            yield from made
        for table, keys in total.counts.items():
            for key, number in keys.items():
                self.stats[f"{table}, {key}"].update(number)


def _made(step: stage.Step, given, tally: Tally) -> list:
    from datatrove.data import Document

    document = {"id": str(given.id), "text": given.text, "source": SOURCE} | given.metadata
    with stage.setting_aside(tally, document["id"], given.text.encode(errors="replace")):
        return [Document(one.pop("text"), one.pop("id"), given.media, one) for one in map(dict, stage.apply(step, document, tally))]
    return []
