"""Mutants of this toolkit's arithmetic and bookkeeping, and which of them the tests notice (Cosmic Ray does the work).

    python tests/mutants/run.py --folder /tmp/mutants                  # 300 mutants, two at a time; again: resumes
    python tests/mutants/run.py --folder /tmp/mutants --survivors      # those that survived once more, by new tests
    python tests/mutants/run.py --folder /tmp/mutants --report out.md  # the result so far

Needs `pip install cosmic-ray pytest-cov` in .venv. The last commit is tested, in clones of it below the folder. First
the whole suite runs once, to learn which test executes which line; of tests that changed since, their files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkResult
from sample import all_mutations, draw

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests/mutants"
DURATION = re.compile(r"^([\d.]+)s (setup|call|teardown) +(\S.*?)\s*$", re.MULTILINE)


def clone(folder: Path, number: int) -> Path:
    """A checkout of the last commit for one worker, as it was committed."""
    tree = folder / f"worker-{number}" / "checkout"
    if not tree.is_dir():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(tree)], check=True)
        (tree / ".venv").symlink_to(ROOT / ".venv")
        shared = ROOT.parent / "shared"
        if shared.is_dir():
            (tree.parent / "shared").symlink_to(shared)
    subprocess.run(["git", "fetch", "-q"], cwd=tree, check=True)
    subprocess.run(["git", "reset", "-q", "--hard", "origin/HEAD"], cwd=tree, check=True)
    return tree


def measure(folder: Path, tree: Path) -> None:
    """Which lines each test executes, and its seconds: of all tests at first, then of those whose file is another."""
    table = folder / "durations.json"
    hashes = folder / "measured.json"
    known = json.loads(hashes.read_text()) if hashes.is_file() else {}
    now = {f"tests/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in (tree / "tests").glob("test_*.py")}
    changed = sorted(name for name in now if now[name] != known.get(name))
    if not changed:
        return
    measuring, output = folder / "measuring", folder / "measured.log"
    shutil.rmtree(measuring, ignore_errors=True)
    measuring.mkdir()
    print(f"measuring which lines {len(changed)} files of tests execute ...", flush=True)
    options = ["--cov", f"--cov-config={tree / HERE}/coverage.ini", "--cov-context=test", "--cov-report="]
    command = [sys.executable, "-m", "pytest", *options, "-p", "children", "--durations=0", "-vv", *changed]
    environment = {**os.environ, "MUTANTS_FOLDER": str(folder), "PYTHONPATH": str(tree / HERE)}
    with output.open("w") as log:
        subprocess.run(command, cwd=tree, env=environment, stdout=log, stderr=subprocess.STDOUT)
    time.sleep(5)  # the last of the processes that tests started are still writing
    combine = [sys.executable, "-m", "coverage", "combine", "-q", "--append", f"--data-file={folder}/coverage"]
    subprocess.run([*combine, *map(str, measuring.glob("data*"))], cwd=tree, check=True)
    phases = json.loads(table.read_text()) if table.is_file() else {}
    phases = {test: own for test, own in phases.items() if test.partition("::")[0] not in changed}
    for seconds, phase, test in DURATION.findall(output.read_text()):
        phases.setdefault(test, {})[phase] = float(seconds)
    table.write_text(json.dumps(phases, indent=0))
    hashes.write_text(json.dumps(now, indent=0))


def begin(folder: Path, tree: Path, count: int, seed: int, workers: int) -> None:
    """A session for each worker, unless there is one."""
    if (folder / "session-0.sqlite").is_file():
        return
    modules = tomllib.loads((tree / HERE / "config.toml").read_text())["cosmic-ray"]["module-path"]
    os.chdir(tree)
    mutations = all_mutations(modules, folder)
    items = draw(mutations, count, seed)
    for number in range(workers):
        with use_db(str(folder / f"session-{number}.sqlite"), WorkDB.Mode.create) as work:
            work.add_work_items(items[number::workers])
    print(f"{count} mutants of {len(mutations)}, seed {seed}", flush=True)


def forget_survivors(session: Path) -> None:
    """Let those that survived be tested once more."""
    with use_db(str(session), WorkDB.Mode.open) as work:
        items, killed = work.work_items, {item.job_id: r for item, r in work.completed_work_items if r.is_killed}
        work.clear()
        work.add_work_items(items)
        for job, result in killed.items():
            work.set_result(job, result)


def execute(folder: Path, number: int) -> None:
    """Test all mutants of a session that have no result."""
    tree = clone(folder, number)
    command = [
        str(ROOT / ".venv/bin/cosmic-ray"),
        "exec",
        f"{HERE}/config.toml",
        str(folder / f"session-{number}.sqlite"),
    ]
    environment = {**os.environ, "MUTANTS_FOLDER": str(folder), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tree, env=environment, check=True)


def results(folder: Path) -> list[tuple[str, WorkResult]]:
    """Module and result of every mutant that was tested."""
    found: list[tuple[str, WorkResult]] = []
    for session in sorted(folder.glob("session-*.sqlite")):
        with use_db(str(session), WorkDB.Mode.open) as work:
            found += [(str(item.mutations[0].module_path), result) for item, result in work.completed_work_items]
    return found


def report(folder: Path) -> str:
    """Killed and survived by module, and the survivors' differences, as Markdown."""
    found = results(folder)
    lines = ["| module | mutants | killed |", "|---|---|---|"]
    for module in sorted({module for module, _ in found}):
        own = [result.is_killed for name, result in found if name == module]
        lines.append(f"| {module} | {len(own)} | {sum(own)} |")
    killed = sum(result.is_killed for _, result in found)
    hung = sum(result.output == "timeout" for _, result in found)
    lines.append(
        f"| **all** | **{len(found)}** | **{killed}** ({killed / max(len(found), 1):.0%}; {hung} by timeout) |"
    )
    for module, result in sorted(found, key=lambda pair: pair[0]):
        if not result.is_killed:
            changed = [line for line in (result.diff or "").splitlines() if re.match(r"[-+@](?![-+]{2} )", line)]
            untested = "no test executes" in (result.output or "")
            lines += ["", f"{module}{': no test executes it' if untested else ''}", "", "```diff", *changed, "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for clones, measurements and results")
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--survivors", action="store_true", help="test those that survived once more")
    parser.add_argument("--report", type=Path, help="write the result so far there as Markdown, and end")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    if chosen.report:
        chosen.report.write_text(report(folder))
        return
    folder.mkdir(parents=True, exist_ok=True)
    tree = clone(folder, 0)
    measure(folder, tree)
    begin(folder, tree, chosen.mutants, chosen.seed, chosen.workers)
    sessions = len(list(folder.glob("session-*.sqlite")))
    if chosen.survivors:
        for session in folder.glob("session-*.sqlite"):
            forget_survivors(session)
    with ThreadPoolExecutor(sessions) as pool:
        list(pool.map(lambda number: execute(folder, number), range(sessions)))
    print(report(folder))


if __name__ == "__main__":
    main()
