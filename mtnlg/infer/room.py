"""Whether a text fits into the context, and what helps where it does not. No jax here."""

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.infer.request import Request


def check_room(request: Request, context: int, model: schema.Model) -> None:
    """Raises ConfigError for more tokens than a context of so many holds; of a text that slides, the prompt alone has to fit, and one more.

    The cure has names of `lm.from_pretrained` and of an `lm.Ask`.
    """
    length, is_learned = len(request.prompt), model.position == "learned"
    wanted = length + (1 if request.slide else request.max_new_tokens)
    if wanted <= context:
        return
    contexts = [min(wanted, model.seq_len)] if min(wanted, model.seq_len) > context else []
    contexts += [wanted] if wanted > model.seq_len and not is_learned else []
    cures = [f"context={tokens}" for tokens in contexts]
    cures += [f"max_new_tokens={context - length}", "slide=True"] if length < context else ["truncate=left"]
    what = f"{length} tokens of prompt and {request.max_new_tokens} new ones exceed the context of {context}"
    if request.slide:
        what = f"{length} tokens of prompt leave no room in the context of {context}"
    raise ConfigError(what, "prompt", " or ".join(cures))
