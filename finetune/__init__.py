"""Fine-tuning: configuration, training loop, engines, checkpoints, tracking, evaluation, SLURM, and the release.

In a published tree (python -m finetune.release) this package lies in scripts/, and gr00t one folder above, where Python
does not look by itself.
"""

import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]
if not (_CHECKOUT / "gr00t").is_dir() and (_CHECKOUT.parent / "gr00t").is_dir():
    sys.path.insert(0, str(_CHECKOUT.parent))
