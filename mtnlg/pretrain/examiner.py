"""What a run is asked on the way and at its end: the held-out loss, and texts."""

from jax.sharding import Mesh

from mtnlg import lm
from mtnlg.core import fault, schema
from mtnlg.infer.engine import Engine
from mtnlg.pretrain.feed import Feed
from mtnlg.pretrain.telling import Telling
from mtnlg.train import evaluate
from mtnlg.train.schedule import Position
from mtnlg.train.state import State


class Examiner:
    """Asks a state of the run, and has it told."""

    def __init__(self, config: schema.Config, mesh: Mesh, feed: Feed, telling: Telling):
        lm.require_room_for_samples(config, feed.tokenizer)
        self._config, self._mesh, self._feed, self._telling = config, mesh, feed, telling
        self._score = evaluate.program(config, mesh)
        self._engine: Engine | None = None

    def evaluate(self, state: State, position: Position, max_tokens: int | None) -> dict[str, evaluate.Heldout]:
        """Held-out loss of every source and of all together."""
        fault.point("evaluate", position.step)
        rows = self._config.microbatch_rows * self._config.mesh.pipe  # a microbatch for every stage
        found = {
            name: evaluate.heldout(self._score, self._mesh, state.params, heldout.batches(rows, max_tokens))
            for name, heldout in self._feed.heldout()
        }
        losses = {"heldout_loss": evaluate.whole(found.values()).loss} | (
            {f"heldout_loss/{name}": h.loss for name, h in found.items()} if len(found) > 1 else {}
        )
        epochs_read = {f"epochs/{name}": value for name, value in self._feed.epochs(position.samples).items()}
        self._telling.heldout(position, losses, epochs_read)
        return found

    def write_samples(self, state: State, position: Position) -> list[tuple[str, str]]:
        """A continuation of every prompt of the config."""
        sample = self._config.sample
        if not sample.prompts:
            return []
        if self._engine is None:
            self._engine = Engine(self._config, self._mesh, state.params, self._feed.tokenizer.vocab_size)
        else:
            self._engine.load(state.params)
        model, written = lm.LanguageModel(self._feed.tokenizer, self._engine), []
        for number, prompt in enumerate(sample.prompts):
            settings = {"max_new_tokens": sample.max_new_tokens, "temperature": sample.temperature, "top_p": sample.top_p}
            seed = (self._config.seed + number) % 2**32
            written.append((prompt, model.complete(prompt, seed=seed, **settings)))
        self._engine.unload()  # training needs the room
        self._telling.samples(position, written)
        return written
