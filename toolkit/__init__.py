"""What every command shares: command line, configuration, pages, trackers. It knows no model, data or simulation.

In a published tree (python -m finetune.release) this package lies in scripts/, and gr00t one folder above, where Python
does not look by itself.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]
if not (_HERE / "gr00t").is_dir() and (_HERE.parent / "gr00t").is_dir():
    sys.path.insert(0, str(_HERE.parent))
