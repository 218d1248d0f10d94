"""Finished runs looked at: tables, comparisons, reports."""
