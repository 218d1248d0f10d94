"""What is right and wrong with the end of a command."""

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field

from .forking import Ended

MOST_LINES = 40
_OURS = re.compile(r'File "([^"]*)", line (\d+), in (\S+)')


@dataclass(frozen=True)
class Failure:
    """A command that did not end as every command must.

    Attributes:
        kind: "traceback", "crash", "hang", "memory", "status", "message" or "state".
        cause: What tells this failure from others.
        case: What to repeat to see it.
        errors: The end of what the command wrote to standard error.
    """

    kind: str
    cause: str
    case: str
    errors: str = ""


@dataclass
class Tally:
    """The counts of a campaign.

    Attributes:
        cases: Kind of case -> how many ran.
        outcomes: Kind of case -> exit status -> how many ended so.
        failures: All that went wrong.
    """

    cases: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, kind: str, status: int, failures: Iterable[Failure]) -> None:
        """Count a case."""
        self.cases[kind] = self.cases.get(kind, 0) + 1
        ends = self.outcomes.setdefault(kind, {})
        ends[str(status)] = ends.get(str(status), 0) + 1
        self.failures += failures

    def __str__(self) -> str:
        lines = [f"{count:>6}  {cause}" for cause, count in self.causes().items()]
        seen = set()
        for failure in self.failures:
            name = f"{failure.kind}: {failure.cause}"
            if name not in seen:
                seen.add(name)
                lines.append(f"\n=== {name}\n{failure.case[:1500]}\n{failure.errors[-1500:]}")
        ends = [f"{kind}: {self.cases[kind]} cases, {ends}" for kind, ends in self.outcomes.items()]
        return "\n".join([*lines, *ends])

    def causes(self) -> dict[str, int]:
        """Return each cause of failures with its number, most frequent first."""
        counts: dict[str, int] = {}
        for failure in self.failures:
            name = f"{failure.kind}: {failure.cause}"
            counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def judge(ended: Ended, case: str, sent: int | None = None) -> list[Failure]:
    """List what is wrong with how a command ended.

    Args:
        ended: How it ended.
        case: What to repeat to see it.
        sent: The signal that was sent to it, if any.
    """

    def failure(kind: str, cause: str) -> list[Failure]:
        return [Failure(kind, cause, case, ended.errors[-3000:])]

    if ended.hung:
        return failure("hang", case.split(" ")[0])
    if ended.status < 0 and -ended.status != sent:
        return failure("crash", signal.Signals(-ended.status).name)
    if "Traceback (most recent call last)" in ended.errors + ended.output:
        return failure("traceback", _cause(ended.errors))
    right = {0, 1, 2}
    if sent in (signal.SIGINT, signal.SIGTERM):
        right = {0, 128 + sent}
    elif sent == signal.SIGKILL:
        right = {0, -sent}
    elif sent is not None:  # SIGSTOP, then SIGCONT
        right = {0}
    if ended.status not in right:
        return failure("status", f"{ended.status} after {sent}")
    lines = ended.errors.splitlines()
    said = [number for number, line in enumerate(lines) if line.startswith(("fuxictr", "usage:"))]
    if ended.status in (1, 2) and not said:
        return failure("message", "none")
    if ended.status in (1, 2) and len(lines) - said[0] > MOST_LINES:
        return failure("message", f"of {len(lines) - said[0]} lines")
    if len(ended.errors) > 200_000:
        return failure("message", f"of {len(ended.errors)} characters")
    return []


def _cause(errors: str) -> str:
    """Return the last frame of ours and the error of the last traceback."""
    last = (
        errors[errors.rindex("Traceback (most recent call last)") :]
        if "Traceback" in errors
        else ""
    )
    frames = [found for found in _OURS.findall(last) if "fuxictr_tf4ctr" in found[0]]
    where = f"{frames[-1][0].split('fuxictr_tf4ctr/')[-1]} {frames[-1][2]}" if frames else "?"
    lines = [line for line in last.splitlines() if line and not line.startswith((" ", "Traceback"))]
    error = re.sub(r"0x[0-9a-f]+|\d+", "N", lines[-1])[:80] if lines else "?"
    return f"{where}: {error}"
