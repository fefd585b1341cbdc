"""Eight bits are the nearest ones, whatever the numbers were computed in."""

import jax
import numpy as np
import pytest

from mtnlg.model.int8 import narrow


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_number_is_further_off_than_half_a_step(dtype):
    """And none is beyond 127, which a quotient rounded up would be."""
    x = jax.random.normal(jax.random.key(0), (64, 4000)).astype(dtype)
    values, scales = (np.asarray(part, np.float64) for part in narrow(x, (0,)))
    assert np.abs(values).max() == 127
    assert np.max(np.abs(values * scales - np.asarray(x, np.float64)) / scales) < 0.501
