"""Runs, sweeps and encoding on a Ray cluster: ``--engine ray``. Imported only when asked for."""

from fuxictr_tf4ctr.errors import SettingsError

try:
    import ray.train
    import ray.tune  # noqa: F401
except ImportError as error:
    raise SettingsError(
        f"--engine ray needs Ray's train and tune: pip install 'fuxictr-tf4ctr[ray]' ({error})"
    ) from error
