"""Where the package finds its configuration and its demo data."""

from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]


def resource_root() -> Path:
    """Return the folder that holds ``config/`` and ``data/``.

    A wheel installs both inside the package; in a clone they lie beside it.
    """
    return _HERE if (_HERE / "config").is_dir() else _HERE.parent
