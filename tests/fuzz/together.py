"""Commands of one kind at work at once, in one place."""

import time
from functools import partial

from .forking import run_at_once
from .project import Project
from .scenarios import SCENARIOS
from .verdicts import Failure, Tally, judge

# Kind of case -> scenario, how many of it, whether all must succeed.
TOGETHER = {
    "two runs in the same second": ("run", 2, True),
    "four encoders of one data set": ("encode", 4, True),
    "two sweeps in one folder": ("tune", 2, False),
}
# The later ones start a little later each time, that they meet at every stage.
_LATER_SECONDS = 0.02


def campaign(name: str, lent: Project, rounds: int, tally: Tally) -> None:
    """Run commands at once, and compare what they made with what one makes.

    Args:
        name: Of the kind of case.
        lent: The project.
        rounds: How often; each is a case.
        tally: Where to count.
    """
    which, count, all_succeed = TOGETHER[name]
    scenario = SCENARIOS[which]
    expected = scenario.expected(lent)
    for late in range(rounds):
        folder = scenario.prepared(lent)
        waits = [partial(time.sleep, late * place * _LATER_SECONDS) for place in range(count)]
        ends = run_at_once([(scenario.argv, wait) for wait in waits], folder)
        case = f"{name}, each {late * _LATER_SECONDS:.2f} s later"
        failures = [failure for ended in ends for failure in judge(ended, case)]
        judged = (max if all_succeed else min)(ends, key=lambda ended: ended.status)
        if judged.status != 0:
            failures.append(Failure("status", f"{judged.status}", case, judged.errors[-3000:]))
        tally.add(
            name,
            judged.status,
            failures or scenario.settled(folder, judged, expected, case),
        )
