"""Draw mutants of the modules in config.toml: positions by lot, and at each of them one of its mutations.

Drawn by position, since a `+` has eleven replacements and a `not` has one. Annotations are left out: they are never
evaluated, so that no test can notice.
"""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.modules import find_modules
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, WorkItem

Position = tuple[int, int]


def annotations(source: str) -> list[tuple[Position, Position]]:
    """Where annotations begin and end: (line, column) from 1 and 0 on."""
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in _annotations(ast.parse(source))
    ]


def _annotations(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.returns
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            yield node.annotation


def all_mutations(modules: list[str], folder: Path) -> list[MutationSpec]:
    """Every mutation of the modules that a test could notice, in a fixed order; the working folder is the checkout."""
    database = folder / "all.sqlite"
    with use_db(str(database), WorkDB.Mode.create) as work:
        init(sorted(find_modules(Path(name) for name in modules)), work, {})
        found = [item.mutations[0] for item in work.work_items]
    database.unlink()
    left_out = {path: annotations(path.read_text()) for path in {spec.module_path for spec in found}}
    evaluated = [
        spec for spec in found if not any(begin <= spec.start_pos < end for begin, end in left_out[spec.module_path])
    ]
    return sorted(evaluated, key=lambda s: (str(s.module_path), s.start_pos, s.operator_name, s.occurrence))


def draw(mutations: list[MutationSpec], count: int, seed: int) -> list[WorkItem]:
    """`count` of them at different positions, the same for the same seed."""
    places: dict[tuple[Path, Position], list[MutationSpec]] = defaultdict(list)
    for spec in mutations:
        places[spec.module_path, spec.start_pos].append(spec)
    lot = random.Random(seed)
    picked = lot.sample(sorted(places), count)
    return [WorkItem.single(f"{number:04}", lot.choice(places[place])) for number, place in enumerate(picked)]
