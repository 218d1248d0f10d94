"""Runs that go on: one unfinished taken up again, a new one from the weights of a finished one."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel

from fuxictr_tf4ctr.datasets import EncodedDataset
from fuxictr_tf4ctr.datasets.feature_specs import complete_columns
from fuxictr_tf4ctr.datasets.new_rows import Ancestor
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.files import held
from fuxictr_tf4ctr.runs.loading import trained_model
from fuxictr_tf4ctr.runs.records import RunRecord, plain, read_run, sweep_up, utc_now
from fuxictr_tf4ctr.schema import is_whole
from fuxictr_tf4ctr.settings.reading import Settings
from fuxictr_tf4ctr.training.checkpoints import read_optimizers, take_over

# Settings that change nothing about the result of a run.
_FREE = {
    *("gpu", "verbose", "num_workers", "model_root", "tensorboard", "trackers"),
    *("checkpoint_minutes", "checkpoint_steps"),
}


@contextmanager
def resumed_run(settings: Settings, folder: Path | None = None) -> Iterator[RunRecord]:
    """Take up an unfinished run; its folder is held while in context.

    Args:
        settings: Settings of the same experiment.
        folder: Folder of the run. None: the latest unfinished run of the expid in ``model_root``
            that no other process works on.

    Yields:
        Its record, now "running" again.

    Raises:
        SettingsError: There is no such run, it is finished or held by another process, or its
            settings differ; the message lists the differences.
        DataError: The folder is none of a run.
    """
    parent = Path(settings["model_root"]) / settings["dataset_id"] / settings.expid
    if parent.is_dir():
        sweep_up(parent)
    runs = [folder] if folder is not None else [file.parent for file in parent.glob("*/run.json")]
    records = sorted(map(read_run, runs), key=lambda run: (run.started, run.folder.name))
    for record in reversed(records):
        if record.status == "finished":
            continue
        with held(record.folder / ".lock") as ours:
            if not ours:
                continue
            _refuse_other_settings(record, settings)
            for leftover in record.folder.glob("*.tmp"):  # of writes that a kill cut off
                leftover.unlink()
            record.settings = {**settings.params, "model_root": record.settings["model_root"]}
            record.status, record.error = "running", None
            record.resumed.append(utc_now())
            record.save()
            yield record
            return
    if folder is not None:
        raise SettingsError(f"{folder}: the run is finished, or another process works on it")
    raise SettingsError(
        f"there is no unfinished run of {settings.expid!r} in {parent}: start one without --resume"
    )


def refuse_other_data(record: RunRecord, dataset: EncodedDataset) -> None:
    """Raise SettingsError unless the data set is the one the run began with."""
    before = record.data.get("fingerprint", dataset.fingerprint)
    if before != dataset.fingerprint:
        raise SettingsError(
            f"{record.folder} cannot be resumed, its data set has changed: fingerprint {before} "
            f"then, {dataset.fingerprint} now; rows {record.data.get('rows')} then, "
            f"{dict(dataset.rows)} now. Start a new run, without --resume"
        )


def _refuse_other_settings(record: RunRecord, settings: Settings) -> None:
    now = json.loads(json.dumps(dict(settings.params), default=plain))
    found = differences(record.settings, now)
    if record.expid != settings.expid:
        found.insert(0, f"expid: {record.expid} then, {settings.expid} now")
    if found:
        listed = "\n".join(f"- {line}" for line in found)
        raise SettingsError(
            f"{record.folder} cannot be resumed, its settings differ:\n{listed}\n"
            "Give it the settings it began with, or start a new run, without --resume"
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the settings that keep a run from being resumed, one line each.

    Args:
        then: The settings the run began with, as run.json has them.
        now: The present settings in the same form.
    """
    found = []
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        longer = key == "epochs" and is_whole(before) and after >= before
        if before != after and key not in _FREE and not longer:
            found.append(f"{key}: {before!r} then, {after!r} now")
    return found


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
    columns, _ = complete_columns(features, settings.params["label_col"], processor)
    encoder.check(columns, settings["num_buckets"])
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
