"""What a sweep shows on stderr while it runs: a live table, or a line per event."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from fuxictr_tf4ctr.runs.records import metrics_line
from fuxictr_tf4ctr.sweep.children import Children, Outcome
from fuxictr_tf4ctr.sweep.monitoring import monitor_name, monitored, more_is_better

_SECONDS_BETWEEN_DRAWINGS = 1.0


class Progress:
    """Shows how far a sweep is and what is best so far.

    Args:
        total: How many runs there will be.
        stream: Where to; a terminal gets the table redrawn, all else a line per event.
    """

    def __init__(self, total: int, stream: TextIO = sys.stderr) -> None:
        self.total = total
        self.ended = self.failed = self.pruned = 0
        self._best: tuple[float, str, str] | None = None
        self._stream = stream
        self._live = stream.isatty()
        self._drawn = 0
        self._last = 0.0

    def add(self, outcome: Outcome) -> None:
        """Take in a run that has ended."""
        self.ended += 1
        expid = outcome.job.expid
        if outcome.pruned:
            self.pruned += 1
            event = "pruned"
        elif outcome.failure:
            self.failed += 1
            event = f"failed: {outcome.failure}"
        else:
            self._compare(outcome)
            event = f"valid {metrics_line(outcome.record.valid)}"
        self._say(f"[{self.ended}/{self.total}] {expid} seed {outcome.job.seed}: {event}")

    def draw(self, children: Children) -> None:
        """Draw the table anew on a terminal, at most once a second."""
        if not self._live or time.monotonic() - self._last < _SECONDS_BETWEEN_DRAWINGS:
            return
        self._last = time.monotonic()
        self._erase()
        lines = [self._summary(), *self._running(children)]
        self._stream.write("".join(f"{line[:160]}\n" for line in lines))
        self._stream.flush()
        self._drawn = len(lines)

    def close(self) -> None:
        """End with the summary."""
        self._say(self._summary())

    def _compare(self, outcome: Outcome) -> None:
        settings = outcome.record.settings
        value = monitored(settings, outcome.record.valid)
        if value is None:
            return
        sign = 1 if more_is_better(settings) else -1
        if self._best is None or sign * value > sign * self._best[0]:
            self._best = value, monitor_name(settings), outcome.job.expid

    def _summary(self) -> str:
        parts = [f"{self.ended} of {self.total} runs done"]
        parts += [f"{self.failed} failed"] * bool(self.failed)
        parts += [f"{self.pruned} pruned"] * bool(self.pruned)
        if self._best is not None:
            value, name, expid = self._best
            parts.append(f"best {name} {value:.6f} by {expid}")
        return ", ".join(parts)

    def _running(self, children: Children) -> Sequence[str]:
        lines = []
        for child in children.running:
            record = children.record(child.job)
            last = record.evaluations[-1] if record is not None and record.evaluations else None
            reached = (
                f"epoch {last['epoch']}, {metrics_line(last['metrics'])}" if last else "starts"
            )
            device = "cpu" if child.device < 0 else f"gpu {child.device}"
            minutes = (time.monotonic() - child.started) / 60
            lines.append(f"  {device}  {minutes:6.1f} min  {child.job.expid}: {reached}")
        return lines

    def _say(self, line: str) -> None:
        self._erase()
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0
