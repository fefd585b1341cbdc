"""Whole runs need no measured peak: its seconds are not what these tests are about."""

import pytest

from mtnlg.train import peak


@pytest.fixture(autouse=True)
def no_gemm_timing(monkeypatch):
    monkeypatch.setattr(peak, "best_gemm_flops_per_sec", lambda dtype: 1e11)
