"""Which checkpoints of a run are kept."""


def kept(losses: dict[int, float | None], last: int, every_steps: int = 0, best: int = 0) -> set[int]:
    """Of steps with their held-out losses (None: not known): the `last` ones, multiples of every_steps (0: none), and so many best ones.

    Of equal losses the earlier step is the better one.
    """
    newest = sorted(losses)[-last:]
    least = sorted((loss, step) for step, loss in losses.items() if loss is not None)[:best]
    return {*newest, *(step for step in losses if every_steps and step % every_steps == 0), *(step for _, step in least)}
