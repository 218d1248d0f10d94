"""The rooms of the package: each imports only what lies below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import fuxictr_tf4ctr

PACKAGE = Path(fuxictr_tf4ctr.__file__).parent
# From the ground up; rooms of one line do not know each other.
LAYERS = (
    ("errors", "__version__"),
    ("files", "fuxictr_imports", "names", "stopping"),
    ("schema",),
    ("registry",),
    ("datasets", "distributed"),
    ("metrics",),
    ("twin",),
    ("training",),
    ("settings",),
    ("runs",),
    ("serving",),
    ("analysis",),
    ("sweep",),
    ("leaderboard",),
    ("engines",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def imported(file: Path) -> Iterator[tuple[str, str]]:
    """The importing and the imported room of every import of ours in a file, lazy ones too."""
    here = file.relative_to(PACKAGE).with_suffix("").parts[0]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").removeprefix(PACKAGE.name + ".")]
            names = names if (node.module or "").startswith(PACKAGE.name + ".") else []
        elif isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
            names = [n.split(".", 1)[1] for n in dotted if n.startswith(PACKAGE.name + ".")]
        else:
            continue
        yield from ((here, name.split(".")[0]) for name in names)


def test_rooms_import_only_what_lies_below_them():
    wrong = set()
    for file in PACKAGE.rglob("*.py"):
        for here, there in imported(file):
            if here in ("__init__", "__main__") or here == there:
                continue
            if LEVEL[there] >= LEVEL[here]:
                wrong.add(f"{file.relative_to(PACKAGE)} imports {there}")
    assert not wrong


def test_every_room_has_its_place():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    rooms -= {"__init__", "__main__", "__pycache__", "config", "data"}
    assert rooms <= set(LEVEL)
