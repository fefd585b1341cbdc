"""What stands out among losses, and what does not."""

import json

import numpy as np
import pytest

from mtnlg.core import schema
from mtnlg.train.spike import Spikes

GUARD = schema.Guard(spike_window=20, spike_steps=3)


def seen(spikes, losses, first=1):
    return [step for step, loss in enumerate(losses, first) if spikes.see(step, loss)]


def noisy(count, seed=0):
    """A loss that falls as real ones do."""
    steps = np.arange(count)
    return 2 + 8 * (steps + 10) ** -0.3 + np.random.default_rng(seed).normal(0, 0.05, count)


@pytest.mark.parametrize("seed", range(5))
def test_no_alarm_while_the_loss_falls(seed):
    spikes = Spikes(schema.Guard())
    for step, loss in enumerate(noisy(10_000, seed)):
        spikes.see(step, loss)
        assert not spikes.found


def test_a_loss_that_hardly_moves_gives_no_alarm():
    assert seen(Spikes(GUARD), [3.0] * 30 + [3.1] * 5 + [3.0] * 5) == []


def test_a_spike_is_so_many_steps_one_after_the_other():
    spikes, losses = Spikes(GUARD), noisy(100)
    losses[50:52] += 3
    losses[60:64] += 3
    assert seen(spikes, losses[:59]) == [51, 52] and not spikes.found
    assert seen(spikes, losses[59:62], 60) == [61, 62] and not spikes.found
    assert spikes.see(63, losses[62]) and spikes.found == (61, 62, 63)
    assert spikes.see(64, losses[63]) and not spikes.see(65, losses[64])
    assert spikes.found == (61, 62, 63), "what is seen later, before anybody asks, does not hide it"


def test_what_stands_out_does_not_become_usual():
    """A loss that stays up stands out for ever."""
    spikes = Spikes(GUARD)
    assert seen(spikes, [3.0] * 20 + [6.0] * 200) == list(range(21, 221))


def test_nothing_stands_out_before_half_of_the_window_is_there():
    assert seen(Spikes(GUARD), [3.0] * 9 + [9.0]) == []
    assert seen(Spikes(GUARD), [3.0] * 10 + [9.0]) == [11]


def test_nothing_is_looked_for_when_it_is_off():
    assert seen(Spikes(schema.Guard(spike_deviations=None)), [3.0] * 200 + [900.0] * 9) == []


@pytest.mark.parametrize("cut", [5, 40, 51, 52, 53])
def test_one_that_is_kept_and_taken_up_again_sees_the_same(cut):
    losses = noisy(80)
    losses[50:53] += 3
    whole, first, second = Spikes(GUARD), Spikes(GUARD), Spikes(GUARD)
    expected = seen(whole, losses)
    found = seen(first, losses[: cut - 1])
    found += [cut] if (ahead := first.after(cut, losses[cut - 1])).to_json()["steps"][-1:] == [cut] else []
    second.restore(json.loads(json.dumps(ahead.to_json())))
    assert found + seen(second, losses[cut:], cut + 1) == expected == [51, 52, 53]
    assert second.to_json() == whole.to_json()


@pytest.mark.parametrize("later", [[6.0], [3.0]], ids=["still up", "calm again"])
def test_a_spike_that_is_to_be_gone_back_from_is_kept_until_it_is(later):
    guard = schema.Guard(spike_window=20, spike_steps=3, rollback_steps=1)
    spikes, after = Spikes(guard), Spikes(guard)
    seen(spikes, [3.0] * 20 + [6.0] * 3 + later)
    after.restore(json.loads(json.dumps(spikes.to_json())))
    assert after.found == spikes.found == (21, 22, 23)


def test_a_spike_that_nobody_goes_back_from_is_not_gone_back_from_later():
    spikes, after = Spikes(GUARD), Spikes(schema.Guard(spike_window=20, spike_steps=3, rollback_steps=1))
    seen(spikes, [3.0] * 20 + [6.0] * 3 + [3.0])
    after.restore(spikes.to_json())
    assert spikes.found and not after.found
