"""What a run reads: prepared tokens, the order in which they are drawn, and batches of them from any position on."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from mtnlg.core import config as configs
from mtnlg.core import fault, files, ranges, schema
from mtnlg.core.ranges import Range
from mtnlg.corpus import build, manifest
from mtnlg.data import edits, epochs, skips
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.edits import Edit, EditedBlend
from mtnlg.data.loader import Heldout, Loader, Prefetcher
from mtnlg.data.store import Store
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import processes, timetable
from mtnlg.train import loop, schedule
from mtnlg.train.schedule import Position


class Feed:
    """The tokens of a config, prepared if need be, and, once it is set, their `blend`."""

    blend: EditedBlend

    def __init__(self, config: schema.Config, mesh: Mesh, directory: pathlib.Path):
        self._config, self._mesh = config, mesh
        with files.writing(directory):
            fault.point("prepare")
        processes.by_first(lambda: str(build.prepare(config, directory)))
        self.prepared = manifest.load(directory)
        self.tokenizer = tokenizers.load(self.prepared.tokenizer)
        same = {"the prepared text": str(self.prepared), "the tokenizer": self.tokenizer.sha256}
        processes.require_same(same, "a data.directory on a file system that every process sees")

    @property
    def names(self) -> list[str]:
        """Of the sources."""
        return [source.name for source in self.prepared.sources]

    @property
    def fingerprint(self) -> dict:
        """Of what is trained on: {'tokens': {file: SHA-256}, 'eod_id': the id that ends a document}."""
        stores = {source.name: source.train for source in self.prepared.sources}
        tokens = {f"{name}.bin": store.bin_sha256 for name, store in stores.items()}
        tokens |= {f"{name}.idx": store.idx_sha256 for name, store in stores.items()}
        return {"tokens": tokens, "eod_id": self.tokenizer.eod_id}

    @property
    def heldout_bytes(self) -> int:
        """Of the text that is held out, of all sources."""
        return sum(source.heldout.num_bytes for source in self.prepared.sources)

    def go_on(self, meta: dict, where: str, left_out: Sequence[Range] = ()) -> None:
        """Sets the blend of a checkpoint (of none: {'samples': 0}) from its sample on: with other weights in the config, one edit more.

        left_out: what is to be skipped beside the ranges of the config. Raises ConfigError for what was read already.
        """
        data, known = self._config.data, skips.from_json(meta.get("skips", ()))
        left_out = skips.go_on(known, [*map(ranges.parse, data.skip_ranges), *left_out], meta["samples"])
        first, _ = known.passed(meta["samples"])
        by_tokens = tuple(source.train.num_tokens for source in self.prepared.sources)
        if "blend" in meta:
            recorded = edits.from_json(meta["blend"], self.names, where)
        else:  # none, or one from before edits were kept, whose weights are in its config
            before = configs.flatten(meta["config"])["data.weights"] if "config" in meta else ()
            recorded = (Edit(0, tuple(before or by_tokens)),)
        self.blend = EditedBlend(edits.go_on(recorded, first, data.weights or by_tokens, data.order), skips=left_out)

    def epochs(self, samples: int) -> dict[str, float]:
        """How often the text of each source has been read, by tokens, when so many samples are consumed."""
        sources = {source.name: source.train.num_tokens for source in self.prepared.sources}
        readings = epochs.of_run([*sources], [*sources.values()], self.blend, samples, self._config.model.seq_len)
        return {one.name: one.epochs for one in readings}

    def epochs_line(self, position: Position) -> str:
        """`epochs`, for people, now and at the end."""
        now, last = self.epochs(position.samples), self.epochs(schedule.final_position(self._config).samples)
        edited = [f"; other weights from sample {edit.first} on" for edit in self.blend.edits[1:]]
        left_out = [f"; without samples {one}" for one in self.blend.skips.ranges]
        return f"epochs: {', '.join(f'{name} {now[name]:.2f} of {last[name]:.2f}' for name in now)}{''.join(edited + left_out)}"

    def heldout(self) -> Iterator[tuple[str, Heldout]]:
        """The held-out text of each source, with its name."""
        for source in self.prepared.sources:
            store = Store(source.heldout.prefix, vocab_size=self._config.model.vocab_size)
            yield source.name, Heldout(store, seq_len=self._config.model.seq_len, **self._documents())

    @contextlib.contextmanager
    def batches(self, position: Position) -> Iterator[Iterator[loop.Batch]]:
        """Batches from `position` on, made one step ahead in a thread."""
        config, model, train = self._config, self._config.model, self._config.train
        stores = [Store(source.train.prefix, vocab_size=model.vocab_size) for source in self.prepared.sources]
        loader = Loader(
            stores,
            self.blend,
            seq_len=model.seq_len,
            seed=config.seed,
            order=config.data.order,
            num_samples=schedule.final_position(config).samples,
            **self._documents(),
        )
        rows = config.microbatch_rows
        most, own = train.batch_size // rows, meshes.local_rows(self._mesh, rows)

        def make(samples: int) -> dict:
            """Of every microbatch, the rows that this process's devices hold."""
            size = schedule.batch_size(train, samples)
            numbers = np.arange(samples, samples + size).reshape(-1, rows)[:, own]
            microbatches = {name: a.reshape(*numbers.shape, model.seq_len) for name, a in loader.batch(numbers.ravel()).items()}
            return {name: np.pad(a, [(0, most - len(a)), (0, 0), (0, 0)]) for name, a in microbatches.items()}

        def starts() -> Iterator[int]:
            samples = position.samples
            while True:
                yield samples
                samples += schedule.batch_size(train, samples)

        def on_mesh(prefetched) -> Iterator[loop.Batch]:
            for step, (samples, fields) in enumerate(prefetched, position.step + 1):
                size = schedule.batch_size(train, samples)
                first, last = self.blend.skips.draws([samples, samples + size - 1]).tolist()
                spoiled = fault.point("batch", step, range(first, last + 1))
                if "nan" in spoiled:
                    fields["weights"] = np.full_like(fields["weights"], np.nan)
                if "garble" in spoiled:
                    fields["targets"] = np.full_like(fields["targets"], model.vocab_size - 1)
                table = timetable.on_mesh(config, self._mesh, size // rows)
                yield loop.Batch(meshes.put_rows(self._mesh, fields, rows), size // rows, size, table)

        with Prefetcher(lambda samples: (samples, make(samples)), starts()) as prefetched:
            yield on_mesh(prefetched)

    def _documents(self) -> dict:
        """How documents inside a sequence are told apart, in training and scoring alike."""
        return {"reset_at_documents": self._config.data.reset_at_documents, "eod_id": self.tokenizer.eod_id}
