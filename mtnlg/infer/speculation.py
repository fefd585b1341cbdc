"""An engine with a second one for a smaller model that drafts: a step gives a row the drafted tokens that it takes, and one more."""

import jax
import numpy as np

from mtnlg import spmd
from mtnlg.core.errors import ConfigError
from mtnlg.infer.engine import Engine
from mtnlg.infer.programs import Told
from mtnlg.infer.request import Request, Token
from mtnlg.infer.speculative import Round, round_program
from mtnlg.infer.text import Text, token_of
from mtnlg.model import cache as caches


class Speculation(Engine):
    """Writes as an engine of the same weights would: drawn texts have the same distribution, though for a seed they are others; greedy ones
    are the same, but where two tokens are equal up to rounding (several tokens read at once round otherwise than one)."""

    def __init__(self, draft: Engine, num_drafted: int, *model, **settings):
        """draft: an engine for the small model, of the same mesh, rows, ids and context, used by nobody else. model, settings: `Engine`'s.

        Raises ConfigError for a draft that does not fit, and as `Engine` does.
        """
        self.draft, self.num_drafted = draft, num_drafted
        super().__init__(*model, **settings)
        if num_drafted < 1:
            raise ConfigError(f"{num_drafted} tokens drafted at a time", "num_drafted", "1 or more")
        for name in ("mesh", "num_rows", "num_ids", "context"):
            theirs, own = getattr(draft, name), getattr(self, name)
            if theirs != own:
                raise ConfigError(f"{name}={theirs} of the draft is not the model's, {own}", "draft", "the same for both")
        self.drafted_tokens, self.taken_tokens = 0, 0
        everywhere, in_place = self.programs.everywhere, self.programs.in_place
        reads = [spmd.read(engine.config, engine.mesh, engine.laid) for engine in (self, draft)]
        run = round_program(*reads, num_drafted, self.num_ids, self.context)
        self._round = jax.jit(run, donate_argnums=(2, 3, 4, 5), out_shardings=(everywhere, everywhere, in_place, in_place, everywhere))
        nothing_behind = lambda behind_B, rows_R: behind_B.at[rows_R].set(caches.IDLE, mode="drop")  # noqa: E731
        self._nothing_behind = jax.jit(nothing_behind, donate_argnums=0, out_shardings=everywhere)

    def check(self, request: Request) -> None:
        """As `Engine.check`; and a text cannot slide."""
        super().check(request._replace(slide=False))

    @property
    def drafts(self) -> tuple[int, int]:
        return self.taken_tokens, self.drafted_tokens

    def unload(self) -> None:
        super().unload()
        self.draft.unload()

    def reset(self) -> None:
        super().reset()
        self.draft.reset()
        self._behind = None

    def reserve(self, num_tokens: int) -> None:
        super().reserve(num_tokens)
        self.draft.reserve(num_tokens)
        if self._behind is None:
            self._behind = self.programs.put(np.full(self.num_rows, caches.IDLE, np.int32))

    def _copy_prefix(self, numbers: tuple) -> None:
        super()._copy_prefix(numbers)
        self.draft._copy_prefix(numbers)

    def _read(self, inputs: tuple):
        self.draft._read(inputs)
        return super()._read(inputs)

    def _begin(self, texts: list[Text | None], logits_RV) -> None:
        super()._begin(texts, logits_RV)
        rows_R = np.array([self.num_rows if text is None else text.row for text in texts], np.int32)
        self._behind = self._nothing_behind(self._behind, self.programs.put(rows_R))

    def _following(self, with_logprobs: bool) -> Round:
        state = self._rows, self._behind, self._cache, self.draft._cache
        *state, told = self._round(self.params, self.draft.params, *state, self._active, with_logprobs)
        self._rows, self._behind, self._cache, self.draft._cache = state
        return told

    def _tokens(self, host: Told | Round, place: int, text: Text) -> list[Token]:
        if isinstance(host, Told):  # the first token after a prompt
            return super()._tokens(host, place, text)
        taken, start = int(host.taken_B[place]), place * (self.num_drafted + 1)
        text.num_sent += taken
        self.drafted_tokens, self.taken_tokens = self.drafted_tokens + self.num_drafted, self.taken_tokens + taken
        return [token_of(host.told, n, text.request.num_likeliest) for n in range(start, start + taken + 1)]
