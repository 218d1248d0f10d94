"""The command line: every command parses, calls one function and prints.

Each module adds the commands of one kind to the parser. Commands import what they need when called:
torch takes seconds that ``--help`` and a mistyped command should not.

Exit status: 0 done; 1 the run failed; 2 settings or data are not valid; 130 interrupted; 143
terminated by SIGTERM.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from fuxictr_tf4ctr import __version__
from fuxictr_tf4ctr.cli import data, export, judging, listing, predict, run, sweeps
from fuxictr_tf4ctr.errors import Terminated, UserError

# In the order of the help.
_COMMANDS = (run, predict, export, judging, data, listing, sweeps)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: Arguments; those of the process where None.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(argv, argparse.Namespace(argv=argv))
    try:
        return arguments.call(arguments)
    except UserError as error:
        rank = os.environ.get("RANK")
        print(f"fuxictr{f' rank {rank}' if rank else ''}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fuxictr: interrupted", file=sys.stderr)
        return 130
    except Terminated as stop:
        print("fuxictr: terminated; go on with --resume", file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:
        # The reader of a listing closed the pipe; nothing is left to say.
        sys.stderr.close()
        return 0


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
    for module in _COMMANDS:
        module.add_commands(commands)
    return parser
