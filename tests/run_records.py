"""Records of runs that were never made, for tests of what is done with records."""

from pathlib import Path

from fuxictr_tf4ctr.runs.records import RunRecord

SETTINGS = {
    "model": "TF4CTR_DCNv2",
    "dataset_id": "tiny_x1_0a1b2c3d",
    "monitor": "AUC",
    "monitor_mode": "max",
    "embedding_dim": 10,
    "min_categr_count": 1,
    "c": 0.8,
    "gpu": -1,
    "n_rows": None,
}


def write_run(root: Path, expid="TF4CTR_DCNv2_tiny_001_1a2b3c4d", seed=1, auc=0.8, **more):
    """Write a finished run into ``<root>/<dataset_id>/<expid>/<seed>`` and return its record."""
    settings = SETTINGS | {"seed": seed} | more.pop("settings", {})
    folder = root / settings["dataset_id"] / expid / f"2026{seed:04d}"
    folder.mkdir(parents=True)
    record = RunRecord(expid, folder, settings, status="finished", **more)
    record.started = f"2026-01-01T00:{seed:02d}:00+00:00"
    record.parameters = 1234
    record.valid = {"AUC": auc + 0.01, "logloss": 0.00001}
    record.test = {"AUC": auc, "logloss": 0.00001}
    record.data = record.data or {"fingerprint": "f", "rows": {}}
    record.log_file.write_text('line P1 INFO Params: {\n    "seed": "1"\n}\n[Metrics] AUC: 0.8\n')
    record.save()
    return record
