"""Fast mode: switches that may change a run's results, each in a module of its own."""

from fuxictr_tf4ctr.training.fast.options import EXACT, FastOptions

__all__ = ["EXACT", "FastOptions"]
