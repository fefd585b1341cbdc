"""What a run keeps: its checkpoints, in one folder or two, what is asked of them before they are made, and going on from one."""

import math
import pathlib

from jax.sharding import Mesh

from mtnlg import checkpoint, pretrained
from mtnlg.checkpoint import Checkpoints
from mtnlg.core import config as configs
from mtnlg.core import fault, ranges, resuming, schema
from mtnlg.core.errors import DataError
from mtnlg.core.ranges import Range
from mtnlg.data import edits, skips
from mtnlg.parallel import arrangement, processes
from mtnlg.pretrain import fast, rollback
from mtnlg.pretrain.feed import Feed
from mtnlg.pretrain.telling import Telling
from mtnlg.run import environment
from mtnlg.run.phases import Phases
from mtnlg.train import state as states
from mtnlg.train.replicas import Replicas
from mtnlg.train.schedule import Position
from mtnlg.train.spike import Spikes
from mtnlg.train.state import State


class Keeper:
    """The checkpoints of a run. `spikes` sees its losses, and is kept and restored with them."""

    def __init__(self, config: schema.Config, mesh: Mesh, path: pathlib.Path, feed: Feed, telling: Telling, phases: Phases):
        self.config, self.mesh, self.path, self.feed, self.telling, self.phases = config, mesh, path, feed, telling, phases
        keep = config.checkpoint
        self.checkpoints = Checkpoints(path / "checkpoints", keep.keep_last, keep.keep_every_steps, keep.keep_best)
        self.fast = fast.open_folder(config.checkpoint, path)
        self.spikes = Spikes(config.guard)
        self.replicas = Replicas(config, mesh) if config.guard.replicas_every_steps else None

    @property
    def tiers(self) -> list[Checkpoints]:
        """The checkpoints in the run's own folder, which last, and those on a fast disk, if there is one."""
        return [self.checkpoints, *([self.fast] if self.fast else [])]

    def clear_unfinished(self) -> None:
        """Before the first save: what an interrupted one left behind."""
        for tier in self.tiers:
            processes.by_first(tier.clear_unfinished)

    def close(self) -> None:
        """A save under way is finished, whatever ended the run."""
        with self.phases.within("save"):
            for tier in self.tiers:
                tier.join()

    def forget_fast(self, step: int) -> None:
        """What is saved for good needs no copy on the fast disk."""
        if self.fast:
            processes.by_first(lambda: self.fast.forget(step))

    def restore(self) -> tuple[State, Position, int]:
        """The newest good checkpoint of this run, else the weights of init.from, else fresh ones; the feed goes on from there.

        And how many steps, one after the other, were skipped just before.
        """
        fault.point("restore")
        config, rollbacks = self.config, processes.by_first(lambda: [str(one.draws) for one in rollback.read(self.path)])
        left_out = list(map(ranges.parse, rollbacks))
        found = self.newest_without(left_out)
        meta = checkpoint.meta(found) if found else {"samples": 0}
        self.feed.go_on(meta, str(found), left_out)
        self.spikes.restore(meta.get("spikes", {}))
        if found is None and config.init.from_ is not None:
            source = checkpoint.find(config.init.from_)
            checkpoint.require_good(source)
            self.require_same_tokenizer(source)
            resuming.require_same_network(_flat(checkpoint.meta(source)), self.identity, config.resume.allow, str(source))
            return states.make(config, self.mesh)._replace(params=pretrained.load_params(source, config, self.mesh)), Position(), 0
        if found is None:
            return states.make(config, self.mesh), Position(), 0
        self.require_same_tokenizer(found)
        self.require_same_run(found, meta)
        abstract = states.abstract_canonical(config, self.mesh)
        stored = State(*(checkpoint.load(found, part, getattr(abstract, part), config) for part in State._fields))
        state = arrangement.arranged(config, self.mesh, stored)
        return state, Position(*(meta[field] for field in Position._fields)), meta.get("skipped", 0)

    def newest_without(self, left_out: list[Range]) -> pathlib.Path | None:
        """The newest good checkpoint that has not read of these samples; newer ones are set aside as `STEP.rolledback`."""

        def put_aside(found: pathlib.Path) -> bool:
            meta = checkpoint.meta(found)
            is_overtaken = skips.is_overtaken(skips.from_json(meta.get("skips", ())), meta["samples"], left_out)
            return is_overtaken and bool(checkpoint.set_aside(found, "rolledback"))

        while found := checkpoint.newest_good([tier.directory for tier in self.tiers]):
            if not processes.by_first(lambda found=found: put_aside(found)):  # nobody else looks into what may be gone
                return found
        return None

    def require_same_tokenizer(self, step_dir: pathlib.Path) -> None:
        if checkpoint.meta(step_dir)["tokenizer_sha256"] != self.feed.tokenizer.sha256:
            raise DataError(
                "the checkpoint was trained with another tokenizer",
                str(step_dir),
                f"--config.data.tokenizer={step_dir.parent.parent}/tokenizer",
            )

    def require_same_run(self, step_dir: pathlib.Path, meta: dict) -> None:
        """Raises ConfigError or DataError when going on from there would be another run, before anything is compiled or changed."""
        if not checkpoint.has(step_dir, "optimizer"):
            return  # a converted model, nothing to go on from: `load` says what to do with it
        for note in resuming.require_same_run(_flat(meta), self.identity, self.config.resume.allow, str(step_dir)):
            processes.by_first(lambda note=note: print(note))

    @property
    def identity(self) -> dict:
        """What a checkpoint is compared with."""
        return {"config": configs.to_flat(self.config), "versions": environment.versions(), "data": self.feed.fingerprint}

    def compare_replicas(self, state: State, step: int) -> None:
        if self.replicas is not None:
            self.replicas.require_same(state, step)

    @property
    def has_failed(self) -> bool:
        """Whether a save under way has gone wrong already, in this process."""
        return any(tier.failed for tier in self.tiers)

    def settle(self, state: State, position: Position, num_skipped: int) -> None:
        """Until what is being saved is on disk; a save that failed for want of room is made once more, with the state of now."""
        for tier in self.tiers:
            with self.phases.within("save"):
                failure = tier.settle()
            if failure:
                self.save(state, position, num_skipped, tier=tier)

    def save(
        self,
        state: State,
        position: Position,
        num_skipped: int = 0,
        heldout_loss: float = math.nan,
        tier: Checkpoints | None = None,
        spikes: Spikes | None = None,
    ) -> None:
        """Begins to save. heldout_loss: of this state, if it was just found; tier: where, None: in the run's own folder.

        spikes: who has seen the losses up to this state; None: whoever sees those that are told.
        Raises TemporaryFailure when the save before failed for want of room, and this one fails too.
        """
        tier = tier or self.checkpoints
        meta = position._asdict() | self.identity | {"config": configs.to_nested(self.config), "skipped": num_skipped}
        meta |= {"tokenizer_sha256": self.feed.tokenizer.sha256, "blend": edits.to_json(self.feed.blend.edits, self.feed.names)}
        meta |= {"skips": skips.to_json(self.feed.blend.skips), "spikes": (spikes or self.spikes).to_json()}
        if math.isfinite(heldout_loss):
            meta["heldout_loss"] = heldout_loss
        with self.phases.within("save"):
            if failure := tier.settle():
                self.telling.note(f"a save has failed, and is tried once more with step {position.step}: {failure.what} ({failure.where})")
            self.compare_replicas(state, position.step)
            stored = arrangement.canonical(self.config, self.mesh, state)
            tier.save(position.step, stored.params, stored.optimizer, meta)


def _flat(meta: dict) -> dict:
    return meta | {"config": configs.flatten(meta["config"])}
