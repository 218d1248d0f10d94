"""TF4CTR for FuxiCTR: twin-focus training of parallel CTR models."""

from fuxictr_tf4ctr.fuxictr_imports import defer_ray

defer_ray()

__version__ = "0.1.0"
