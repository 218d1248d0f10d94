"""Submissions to the BARS leaderboard: the rules, checked, and the files, exactly."""

from fuxictr_tf4ctr.leaderboard.submission import Submission, submit

__all__ = ["Submission", "submit"]
