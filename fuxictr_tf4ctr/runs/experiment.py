"""The order of the steps: settings, data, model, training, evaluation, record."""

import inspect
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr.utils import print_to_json

from fuxictr_tf4ctr import errors
from fuxictr_tf4ctr.datasets import EncodedDataset, H5DataLoader, encode_dataset, load_feature_map
from fuxictr_tf4ctr.datasets.loader import is_binary
from fuxictr_tf4ctr.distributed import (
    ALONE,
    Ranks,
    check_agreement,
    synchronise_batch_norm,
)
from fuxictr_tf4ctr.distributed.cost import (
    WHOLE,
    ShardingOptions,
    table_engine,
)
from fuxictr_tf4ctr.errors import DataError, SettingsError, StorageError, Terminated, UserError
from fuxictr_tf4ctr.files import need_space, write_whole
from fuxictr_tf4ctr.metrics.calibration import (
    add_calibration,
    calibrated_metrics,
    correct_sampling,
    fit_calibration,
)
from fuxictr_tf4ctr.runs.loading import WithinMemory, keep_schema
from fuxictr_tf4ctr.runs.observers import Trackers, evaluation_row
from fuxictr_tf4ctr.runs.records import RunRecord, logging_to, new_run, read_run, versions
from fuxictr_tf4ctr.runs.resume import parent_of, refuse_other_data, resumed_run
from fuxictr_tf4ctr.settings.keys import wanted_trackers
from fuxictr_tf4ctr.settings.model_keys import batch_norms
from fuxictr_tf4ctr.settings.reading import Settings
from fuxictr_tf4ctr.stopping import sigterm_raises
from fuxictr_tf4ctr.training import (
    Checkpoints,
    Data,
    Schedule,
    Team,
    Watch,
    evaluate,
    fit,
    training_bytes,
)
from fuxictr_tf4ctr.training.checkpoints import optimizers_of
from fuxictr_tf4ctr.training.evaluation import labels_and_scores
from fuxictr_tf4ctr.training.shards import UnmadeTable

LOG = logging.getLogger(__name__)

# Settings that each rank has its own of.
_OWN = ("gpu", "model_root", "data_root", "train_data", "valid_data", "test_data")


def run_experiment(
    settings: Settings,
    resume: bool | Path = False,
    ranks: Ranks = ALONE,
    on_evaluation: Callable[[dict[str, Any]], None] | None = None,
) -> RunRecord:
    """Train and evaluate one experiment.

    Args:
        settings: Checked settings of the experiment.
        resume: Take up an unfinished run: the latest of this expid, or the one in the folder given.
        ranks: The processes that train it together; all call this. ``batch_size`` is that of all.
        on_evaluation: Called with each record of :attr:`FitResult.epochs` once it is saved.

    Returns:
        The record of the finished run; its folder holds log, checkpoint and run.json.

    Raises:
        UserError: The data do not fit, training diverged, or there is nothing to resume. The record
            of a run that began says "failed".
        KeyboardInterrupt: The run was interrupted. The record says so, with what was reached.
        Terminated: SIGTERM came. The record says "interrupted"; a training's state is saved.
    """
    check_workers(settings, ranks.size)
    sharding = ShardingOptions.from_params(settings.params)
    if sharding is not None:  # found now, where TorchRec cannot be loaded
        table_engine()
    parent = parent_of(settings)
    with _record(settings, resume, ranks) as record, sigterm_raises():
        if ranks.leads:
            ranks.remember("run", str(record.folder.resolve()))
        checkpoints = Checkpoints(
            record.state_folder,
            settings["checkpoint_minutes"],
            settings.params.get("checkpoint_steps"),
        )
        trackers = Trackers(wanted_trackers(settings.params) if ranks.leads else ())
        with (
            logging_to(record.log_file, on_stderr=ranks.leads),
            trackers.of(record),
            _recorded(record),
        ):
            LOG.info("Params: %s", print_to_json(record.settings))
            for text in settings.warnings:
                LOG.warning(text)
            LOG.info("Data: %s", "; ".join(settings.found) or settings["train_data"])
            seed_everything(settings["seed"])
            with _timed(record, "encode"):
                dataset = encode_dataset(settings.params, ancestor=parent and parent.encoder)
                refuse_other_data(record, dataset)
                feature_map = load_feature_map(dataset, settings.params)
            if settings.params.get("calibration") and dataset.valid is None:
                raise SettingsError(
                    "calibration is fitted on validation data: give valid_data or valid_size"
                )
            record.data = {
                "fingerprint": dataset.fingerprint,
                "rows": dict(dataset.rows),
                "folder": str(dataset.data_dir.resolve()),
            }
            if sharding is not None:
                record.versions |= versions(["torchrec"])
            shared = {key: value for key, value in settings.params.items() if key not in _OWN}
            check_agreement(ranks, shared | {"data": dataset.fingerprint, **record.versions})
            keep_schema(dataset, record)
            LOG.info("Feature specs: %s", print_to_json(feature_map.features))
            model = build_model(settings, feature_map, record)
            if parent is not None:
                record.ancestor = parent.hand_over(model, feature_map)
                LOG.info("Continue from: %s", print_to_json(record.ancestor))
            if ranks.leads:
                need_space(record.folder, _checkpoint_bytes(model, settings))
            tables = WHOLE if sharding is None else table_engine()(model, ranks, sharding)
            team = Team(ranks, tables)
            schedule = Schedule.from_params(settings.params)
            with _timed(record, "load"):
                reserve = training_bytes(model, schedule)
                data = _loaders(dataset, feature_map, settings, ranks, reserve)
            if ranks.size > 1:
                record.machine["workers"] = ranks.size
                if settings["sync_batch_norm"]:
                    synchronise_batch_norm(model)
                torch.manual_seed(settings["seed"] + ranks.rank)  # other dropout on every rank
            watch = Watch(
                _observer(record, trackers, on_evaluation),
                None if settings["verbose"] and ranks.leads else False,
                checkpoints if ranks.leads else None,
                settings.params.get("keep_optimizer") is True,
            )
            with _timed(record, "train"):
                fit(model, data, schedule, team, watch)
            with _timed(record, "evaluate"):
                _evaluate(model, data, record, ranks, watch.progress)
            if settings.params.get("calibration"):
                with _timed(record, "calibrate"):
                    _calibrate(model, data, record, ranks, watch.progress)
            record.append_csv_line()
        checkpoints.remove()
    return record


def run_as_rank(settings: Settings, resume: bool | Path, ranks: Ranks) -> RunRecord:
    """Run an experiment as :func:`run_experiment`, or what ranks started before these left of it.

    Args:
        settings: Checked settings of the experiment.
        resume: What to take up where no rank was started before.
        ranks: The processes that train it together; all call this.
    """
    said = ranks.recall("refused")
    if said is not None:  # what the user must mend: to try again would end the same
        kind, _, message = said.partition(" ")
        raise getattr(errors, kind)(message)
    begun = ranks.recall("run")
    if begun is not None:
        record = read_run(Path(begun))
        if record.status == "finished":  # and some rank was lost while it ended
            return record
        resume = record.folder
    try:
        return run_experiment(settings, resume, ranks)
    except UserError as error:
        ranks.remember("refused", f"{type(error).__name__} {error}")
        raise


def check_workers(settings: Settings, workers: int) -> None:
    """Raise SettingsError unless every batch can be divided among so many processes."""
    if workers < 1:
        raise SettingsError(f"--workers {workers}: at least 1 is needed")
    if workers == 1 and settings.params.get("table_sharding"):
        raise SettingsError(
            "table_sharding divides tables among workers: give --workers 2 or more, or leave it out"
        )
    if workers > 1 and settings.model_class.evaluate is not BaseModel.evaluate:
        raise SettingsError(
            f"--workers {workers}: {settings.model_class.__name__} has its own evaluate, which "
            "knows of no ranks: train it with one worker"
        )
    batch_size = settings["batch_size"]
    if batch_size % workers:
        near = max(round(batch_size / workers), 1) * workers
        raise SettingsError(
            f"batch_size={batch_size} cannot be divided among {workers} workers: set it to {near}"
        )


@contextmanager
def _record(settings: Settings, resume: bool | Path, ranks: Ranks) -> Iterator[RunRecord]:
    """Begin a run or take one up, and hold its folder; all but one rank throw theirs away."""
    if not ranks.leads:
        with (
            TemporaryDirectory() as folder,
            new_run(settings.expid, {**settings.params, "model_root": folder}) as record,
        ):
            yield record
    elif resume:
        with resumed_run(settings, resume if isinstance(resume, Path) else None) as record:
            yield record
    else:
        with new_run(settings.expid, settings.params) as record:
            yield record


def build_model(settings: Settings, feature_map: FeatureMap, record: RunRecord) -> BaseModel:
    """Build the model of an experiment, its checkpoint in the folder of the run."""
    divided = ShardingOptions.from_params(settings.params) is not None
    name = settings["optimizer"]  # FuxiCTR's adam is torch's Adam
    takes = inspect.signature(vars(torch.optim).get(name, torch.optim.Adam)).parameters
    copies = 4 if "betas" in takes else 2  # weights and gradients, and two moments
    with table_engine().unmade() if divided else WithinMemory(copies):
        if issubclass(settings.model_class, MultiTaskModel):
            labels, tasks = feature_map.labels, len(settings["task"])
            if len(labels) != tasks:
                raise SettingsError(
                    f"the data have {len(labels)} labels ({', '.join(labels)}) for "
                    f"num_tasks={tasks}: set that, and an entry of task and loss for each"
                )
        model = settings.model_class(feature_map, **settings.params)
    if settings.params.get("negative_sampling"):
        correct_sampling(model, settings["negative_sampling"])
    model.model_dir, model.checkpoint = str(record.folder), str(record.checkpoint)
    record.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    LOG.info("Total number of parameters: %d.", record.parameters)
    return model


def _checkpoint_bytes(model: BaseModel, settings: Settings) -> int:
    """Return about how many bytes the best weights and the states of a run take on the disk."""
    sizes = [(each, each.numel() * each.element_size()) for each in model.parameters()]
    tables = sum(size for each, size in sizes if isinstance(each, UnmadeTable))
    others = sum(size for _, size in sizes) - tables
    moments = 2 if any("betas" in each.defaults for each in optimizers_of(model).values()) else 0
    sums = {"adagrad": 1, "adam": 2}.get(settings.params.get("table_optimizer"), 0)
    # The oldest state, and the weights before, go when the next are written.
    states = (Checkpoints.kept + 1) * ((1 + moments) * others + (1 + sums) * tables)
    return others + 2 * tables + states


def _observer(
    record: RunRecord,
    trackers: Trackers,
    then: Callable[[dict[str, Any]], None] | None,
) -> Callable[[dict[str, Any]], None]:
    """Return what keeps and shows each evaluation of a run."""

    def on_evaluation(evaluation: dict[str, Any]) -> None:
        # A run that was taken up may repeat evaluations that came after its last checkpoint.
        before = [each for each in record.evaluations if each["step"] < evaluation["step"]]
        record.evaluations = [*before, evaluation]
        record.save()
        LOG.info(evaluation_row(evaluation))
        trackers.write(evaluation)
        if then is not None:
            then(evaluation)

    return on_evaluation


def _evaluate(
    model: BaseModel, data: Data, record: RunRecord, ranks: Ranks, progress: bool | None
) -> None:
    if data.valid is not None:
        LOG.info("****** Validation evaluation ******")
        record.valid = evaluate(model, data.valid, progress=progress, ranks=ranks)
    if data.test is not None:
        LOG.info("******** Test evaluation ********")
        record.test = evaluate(model, data.test, progress=progress, ranks=ranks)


def _calibrate(
    model: BaseModel, data: Data, record: RunRecord, ranks: Ranks, progress: bool | None
) -> None:
    """Fit the correction of probabilities, keep it, and add the metrics that it is to better."""
    columns = labels_and_scores(model, data.valid, progress, ranks)
    method = record.settings["calibration"]
    content = ranks.broadcast(lambda: fit_calibration(method, *columns))
    write_whole(record.calibration_file, json.dumps(content) + "\n")
    add_calibration(model, content)
    LOG.info("****** Calibrated: %s ******", method)
    names = calibrated_metrics()
    record.valid |= evaluate(model, data.valid, names, progress, ranks)
    if data.test is not None:
        record.test |= evaluate(model, data.test, names, progress, ranks)


def _loaders(
    dataset: EncodedDataset,
    feature_map: FeatureMap,
    settings: Settings,
    ranks: Ranks,
    gpu_reserve: int,
) -> Data:
    """Serve the splits; on a GPU, beside so many bytes that the model needs there."""

    def loader(split: str) -> "H5DataLoader | None":
        path = getattr(dataset, split)
        if path is None:
            return None
        gen = H5DataLoader(
            feature_map,
            str(path),
            split=split,
            batch_size=settings["batch_size"] // ranks.size,
            rank=ranks.rank,
            world_size=ranks.size,
            filled=ranks.once_a_host,
            shuffle=settings["shuffle"] and split == "train",
            negative_sampling=settings.params.get("negative_sampling"),
            gpu_reserve=gpu_reserve,
            **{key: settings[key] for key in ("seed", "task", "storage", "memory_budget", "gpu")},
        )
        if is_binary(settings["task"]) and (split == "train" or "AUC" in settings["metrics"]):
            gen.refuse_one_class()  # found now, not by a metric after an epoch
        LOG.info("%s samples: %d", split.capitalize(), gen.num_samples)
        return gen

    train_gen = loader("train")
    # FuxiCTR finds out at the end of the epoch.
    norms = batch_norms(settings.params, settings.model_class)
    alone = ranks.size == 1
    if norms and train_gen.fewest_rows == 1 and (alone or not settings["sync_batch_norm"]):
        rows, size = train_gen.num_samples, train_gen.batch_size
        fits = (each for each in range(size + 1, rows + 1) if rows % each != 1)
        raise DataError(
            f"{dataset.train}: {rows} rows{'' if alone else ' of a worker'} in batches of {size} "
            f"leave a last batch of one row, on which {norms[0]} cannot train; set "
            + (f"batch_size to {next(fits, 2)}" if alone else "sync_batch_norm to true")
        )
    return Data(train_gen, loader("valid"), loader("test"))


@contextmanager
def _recorded(record: RunRecord) -> Iterator[None]:
    """Keep the record's status true, however the run ends."""
    start = time.perf_counter()
    try:
        yield
        record.status = "finished"
    except (KeyboardInterrupt, Terminated):
        record.status = "interrupted"
        LOG.info("Interrupted; run.json holds what was reached.")
        raise
    except StorageError as error:  # with more space, say, it can go on
        record.status, record.error = "interrupted", str(error)
        raise
    except BaseException as error:
        record.status, record.error = "failed", f"{type(error).__name__}: {error}"
        LOG.error("The run failed: %s", record.error)
        if not isinstance(error, UserError):  # for whoever mends the code, of a model of theirs too
            with record.log_file.open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
        raise
    finally:
        _add_seconds(record, "total", start)
        record.save()


@contextmanager
def _timed(record: RunRecord, part: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        _add_seconds(record, part, start)


def _add_seconds(record: RunRecord, part: str, start: float) -> None:
    """Add to what the part took before the run was taken up."""
    record.seconds[part] = record.seconds.get(part, 0.0) + time.perf_counter() - start
