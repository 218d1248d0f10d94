"""The small runs, trained once for all tests."""

from trained_runs import runs  # noqa: F401
