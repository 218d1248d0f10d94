"""The finished run that a new one goes on from: judged before any row is read, then taken over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel

from fuxictr_tf4ctr.datasets.feature_specs import complete_columns
from fuxictr_tf4ctr.datasets.growing import Ancestor
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.runs.loading import trained_model
from fuxictr_tf4ctr.runs.records import RunRecord, read_run
from fuxictr_tf4ctr.settings.reading import Settings
from fuxictr_tf4ctr.training.checkpoints import read_optimizers, take_over


@dataclass(frozen=True)
class Parent:
    """A finished run to go on from.

    Attributes:
        record: Its run.json.
        encoder: Its fitted encoder.
        model: The new run's model with its weights, on its vocabularies.
        optimizers: State of its optimizers, if that is taken over.
    """

    record: RunRecord
    encoder: Ancestor
    model: BaseModel
    optimizers: dict[str, Any] | None

    def hand_over(self, model: BaseModel, feature_map: FeatureMap) -> dict[str, Any]:
        """Give a model the weights of the values known; return what its record says of the run."""
        take_over(model, self.model, self.optimizers)
        grown = {
            name: spec["vocab_size"] - self.encoder.specs[name]["vocab_size"]
            for name, spec in feature_map.features.items()
            if "vocab_size" in spec
        }
        return {
            "folder": str(self.record.folder.resolve()),
            "expid": self.record.expid,
            "started": self.record.started,
            "new_values": grown,
        }


def parent_of(settings: Settings) -> Parent | None:
    """Return the run that ``continue_from`` names, None if it names none.

    Raises:
        SettingsError: It is not finished, of another model, on other columns, or keeps no optimizer
            state while that is wanted.
        DataError: It is no run, or its weights are not those of a model of these settings.
    """
    folder = settings.params.get("continue_from")
    if folder is None:
        return None
    record = read_run(Path(folder))
    if record.status != "finished":
        raise SettingsError(
            f"{folder} cannot be continued from: it is {record.status}; finish it by --resume"
        )
    if record.settings["model"] != settings["model"]:
        raise SettingsError(
            f"{folder} cannot be continued from: its model is {record.settings['model']}, that of "
            f"{settings.expid} {settings['model']}"
        )
    encoder = Ancestor(record.schema_folder, settings.params.get("refit_normalizers") is True)
    features = settings.params.get("feature_cols")
    if features is None:
        raise SettingsError(
            "continue_from grows vocabularies: give raw csv or parquet, not encoded"
        )
    processor = settings.params.get("feature_processor")
    encoder.check(complete_columns(features, settings.params["label_col"], processor)[0])
    model = trained_model(settings, record)
    optimizers = None
    if settings.params.get("keep_optimizer"):
        if not record.optimizer_file.is_file():
            raise SettingsError(
                f"{folder} keeps no state of its optimizer: leave keep_optimizer out, or train it "
                "with keep_optimizer: true"
            )
        optimizers = read_optimizers(record.optimizer_file)
    return Parent(record, encoder, model, optimizers)
