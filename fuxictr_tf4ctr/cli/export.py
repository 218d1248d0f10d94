"""``fuxictr export``: a run's model as a folder to serve from."""

import argparse
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.cli.options import add_run, given_run


def add_commands(commands: Any) -> None:
    """Add ``export`` to the parser's commands."""
    export = commands.add_parser(
        "export",
        help="export a run's model to ONNX or torch.export",
        description="Export a run's model with its vocabularies, a manifest and a scoring script. "
        "Refuses where the exported model scores the run's data otherwise.",
    )
    add_run(export, device=False)
    export.add_argument("--format", default="onnx", choices=("onnx", "torch"), help="default: onnx")
    export.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to make")
    export.add_argument(
        "--tolerance", type=float, default=1e-5, help="largest difference allowed (default: 1e-5)"
    )
    export.set_defaults(call=_export, gpu=-1)


def _export(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.serving.export import export_run

    run = given_run(arguments)
    done = export_run(run, arguments.output, arguments.format, arguments.tolerance)
    print(f"{done.rows:,} rows scored alike: largest difference {done.difference:.3g}")
    print(f"export  {done.folder} ({done.bytes / 1e6:.1f} MB)")
    return 0
