"""Every second of a run belongs to one phase."""

from mtnlg.run.phases import Phases


class Clock:
    secs = 100.0

    def __call__(self):
        return self.secs

    def wait(self, secs):
        self.secs += secs


def test_every_second_is_counted_once():
    clock = Clock()
    phases = Phases(clock)
    clock.wait(3)
    phases.turn("step")
    clock.wait(5)
    with phases.within("evaluate"):
        clock.wait(7)
        with phases.within("save"):
            clock.wait(1)
        clock.wait(2)
    assert (phases.now, phases.since) == ("step", 118.0)
    clock.wait(4)
    assert phases.taken() == {"init": 3, "step": 9, "evaluate": 9, "save": 1}
    clock.wait(6)
    assert phases.taken() == {"step": 6}, "only what is new"


def test_a_phase_ends_with_what_fails_in_it():
    phases = Phases(Clock())
    try:
        with phases.within("save"):
            raise OSError
    except OSError:
        pass
    assert phases.now == "init"


def test_items_are_awaited_in_their_phase():
    clock = Clock()
    phases = Phases(clock)

    def items():
        for item in "ab":
            clock.wait(2)
            assert phases.now == "data"
            yield item

    phases.turn("step")
    phases.taken()
    for _ in phases.waiting(items(), "data"):
        assert phases.now == "step"
        clock.wait(10)
    assert phases.taken() == {"data": 4, "step": 20}
