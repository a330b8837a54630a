#!/usr/bin/env bash
# A policy from nothing: recordings made in ManiSkill, a small N1.7 with random weights, trained and evaluated in closed
# loop, on two CPU cores in about two hours. `make example` calls it; started again it goes on where it was.
# Arguments go to the training, e.g.: scripts/example.sh train.max_steps=10000
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

say "1/4 Recording 400 demonstrations in ManiSkill"
$python -m simulation.record local=none split=color_object part=train episodes=400 image_size=128 recoveries=0.2 \
    out=example/recordings
say "2/4 Recordings to dataset"
[ -d example/data/color_object/train ] ||
    $python prepare_conflict_data.py local=none split=color_object raw_dir=example/recordings data_dir=example/data
say "3/4 Training all of a small N1.7 from random weights"
[ -d example/checkpoints/base ] || $python -m finetune.create_base local=none model=scratch out=example/checkpoints/base
# One process a core; torchrun gives each a single thread, which is how a small model trains fastest on a CPU.
.venv/bin/torchrun --nproc_per_node=2 launch_finetune_local.py local=none experiment=scratch "$@"
say "4/4 Closed loop: 200 episodes with agreeing cues, 200 with conflicting ones"
$python evaluate_conflict.py local=none split=color_object mode=closed_loop episodes=200 \
    checkpoint=example/checkpoints/color_object report_dir=example/reports/color_object device=cpu
