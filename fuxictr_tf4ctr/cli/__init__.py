"""The command line: every command parses, calls one function and prints.

Each module declares the commands of one kind. Commands import what they need when called:
torch takes seconds that ``--help`` and a mistyped command should not.

Exit status: 0 done; 1 the run failed; 2 settings or data are not valid; 130 interrupted; 143
terminated by SIGTERM.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from fuxictr_tf4ctr import __version__
from fuxictr_tf4ctr.cli import finished, preparing, training
from fuxictr_tf4ctr.cli.options import COMMANDS, zoo_for_all
from fuxictr_tf4ctr.errors import Terminated, UserError
from fuxictr_tf4ctr.files import system_error
from fuxictr_tf4ctr.fuxictr_imports import error_of_others
from fuxictr_tf4ctr.stopping import end_with_parent, signals_raise

# In the order of the help.
_MODULES = (training, finished, preparing)

# A longer message is cut: its beginning says what matters.
_LINES, _CHARACTERS = 40, 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: Arguments; those of the process where None.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(argv, argparse.Namespace(argv=argv))
    with signals_raise() as asked:
        end_with_parent()
        try:
            with zoo_for_all(arguments):
                status = arguments.call(arguments)
            sys.stdout.flush()
            return status
        except BaseException as error:
            return _ended_by(asked[0] if asked else error)


def _ended_by(error: BaseException) -> int:
    """Say why a command ended early and return its exit status; raise what nobody can mend."""
    if isinstance(error, OSError):
        with suppress(OSError):  # what is still to be printed cannot be: closing tells once
            sys.stdout.close()
    if isinstance(error, BrokenPipeError):  # the reader of a listing has seen enough
        return 0
    if isinstance(error, KeyboardInterrupt):
        return _say("interrupted", 130)
    if isinstance(error, Terminated):
        return _say("terminated; a run or sweep goes on with --resume", error.exit_code)
    told = isinstance(error, UserError)
    known = error if told else system_error(error) or error_of_others(error)
    if known is None:
        raise error
    return _say(str(known), known.exit_code)


def _say(message: str, status: int) -> int:
    rank = os.environ.get("RANK")
    lines = [line[:_CHARACTERS] for line in message.splitlines()]
    if len(lines) > _LINES:
        lines[_LINES - 1 :] = [f"… and {len(lines) - _LINES + 1} more lines"]
    with suppress(OSError):  # nobody may be listening any more
        print(f"fuxictr{f' rank {rank}' if rank else ''}:", "\n".join(lines), file=sys.stderr)
    return status


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="fuxictr",
        description="Train CTR models in FuxiCTR, with TF4CTR twins of the known ones.",
        epilog="Exit status: 0 done, 1 the run failed, 2 settings or data not valid, "
        "130 interrupted, 143 terminated.",
    )
    parser.add_argument("--version", action="version", version=f"fuxictr-tf4ctr {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in _MODULES:
        for add in COMMANDS[module.__name__]:
            add(commands)
    return parser
