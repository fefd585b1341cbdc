"""The picture is drawn from whatever metrics there are; the line of blocks follows the values."""

import io
import math

import numpy as np
import pytest

from mtnlg.core.errors import MissingInput
from mtnlg.run.curves import _smooth, draw
from mtnlg.run.metrics import Metrics


def picture(path):
    from matplotlib.image import imread

    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return imread(io.BytesIO(content))


def test_curves_of_a_run(tmp_path):
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        for step in range(10, 400, 10):
            loss = math.nan if step == 50 else 2 + 7 * math.exp(-step / 90)
            metrics.write(step=step, loss=loss, learning_rate=6e-4, grad_norm=1.0, tokens=max(step, 2 * step - 200) * 4096)
        metrics.write(step=400, **{"heldout_loss/python": 2.3, "heldout_loss/english": 2.6})
    path = draw(tmp_path / "metrics.jsonl", {"uniform": math.log(8192)})
    assert path == tmp_path / "curves.png"
    image = picture(path)
    assert image.shape[:2] == (900, 1200)
    colors = np.unique(np.rint(255 * image[..., :3]).astype(int) @ (1 << 16, 1 << 8, 1))
    assert {0x2F6DB3, 0xD9622B, 0x3A8F5C, 0x7B5AA6, 0x767676} <= set(colors.tolist())  # each curve and the reference line are there


FIRST_LINE = '{"step": 1, "loss": 9.0, "tokens": 4096}\n'


@pytest.mark.parametrize("content", ["", FIRST_LINE, FIRST_LINE + '{"step": 1, "heldout_loss": 8.9, "tokens": 4096}\n'])
def test_curves_of_a_run_that_hardly_began(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    assert picture(draw(tmp_path / "metrics.jsonl")).shape[:2] == (900, 1200)


def test_curves_need_metrics(tmp_path):
    with pytest.raises(MissingInput):
        draw(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("size", [0, 1, 2, 99, 1000])
def test_smoothing_keeps_straight_lines(size):
    line = 3.0 + 0.5 * np.arange(size)
    np.testing.assert_allclose(_smooth(line), line)


def test_smoothing_takes_noise_away():
    noise = np.random.default_rng(0).normal(size=10_000)
    assert _smooth(noise)[200:-200].std() < 0.1
