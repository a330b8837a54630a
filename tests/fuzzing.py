"""Searches of tests/fuzz, as tests start them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parent / "fuzz/warm_process.py"


def faults(target: str, mutations: int, folder: Path) -> list[str]:
    """What was found, a line each: program, damage and fault, to be repeated with --repeat."""
    command = [sys.executable, str(FUZZ), target, f"--mutations={mutations}", f"--folder={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FUZZ.parents[2])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{target}: " in done.stdout
    written = folder / target / "failures.jsonl"
    records = [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
    return [json.dumps({name: record[name] for name in ("fault", "program", "mutation")}) for record in records]
