"""Hyper-parameter sweeps: FuxiCTR's tuner files, run in parallel child processes."""

from fuxictr_tf4ctr.sweep.runner import SweepOptions, SweepResult, run_sweep

__all__ = ["SweepOptions", "SweepResult", "run_sweep"]
