#!/usr/bin/env bash
# The whole path on the sample recordings: recordings -> dataset -> fine-tuned checkpoint -> open-loop evaluation.
# Called by `make demo`; the commands are those of README.md, with everything below demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

rm -rf demo/data demo/runs demo/checkpoints demo/reports
say "1/4 Recordings to dataset: samples/ -> demo/data/color_object"
$python prepare_conflict_data.py local=none split=color_object raw_dir=samples data_dir=demo/data
say "2/4 A base to fine-tune: the tiny N1.7 with random weights"
$python -m finetune.create_base local=none model=tiny out=demo/checkpoints/base
say "3/4 Fine-tuning (CPU, one process)"
$python launch_finetune_local.py local=none experiment=demo split=color_object
say "4/4 Open-loop evaluation on the two unseen episodes"
$python evaluate_conflict.py local=none split=color_object checkpoint=demo/checkpoints/color_object \
    data_dir=demo/data report_dir=demo/reports/color_object device=cpu
cat <<'TEXT'

Done. What lies where:
  demo/data/color_object/{train,conflict}   the datasets (LeRobot v2.1, GR00T-flavored); meta/split.json lists the unseen episodes
  demo/runs/color_object                    checkpoints to resume from, metrics.jsonl, the offline wandb run
  demo/checkpoints/color_object             the finished checkpoint in the release layout
  demo/reports/color_object                 plots (*.png) and numbers (open_loop.json) of the evaluation

How to read the numbers: the errors are between predicted and recorded actions on episodes the policy has not seen. It
should beat "hold still" clearly. "Mean chunk" is the average of all training chunks, a strong baseline on such short,
similar episodes: this tiny model with random vision learns the average motion, not yet which object to pick. That takes
the released weights (README.md, "On GPUs") or a longer training on more recordings.
TEXT
