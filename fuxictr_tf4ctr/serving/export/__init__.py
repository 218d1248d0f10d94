"""A trained model as one folder to serve from, without FuxiCTR or this package."""

from fuxictr_tf4ctr.serving.export.artefact import Artefact, export_run

__all__ = ["Artefact", "export_run"]
