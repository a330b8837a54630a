#!/usr/bin/env bash
# A policy from nothing: recordings made in ManiSkill, a small N1.7 with random weights, trained and evaluated in closed
# loop, on two CPU cores in two hours, with 10 GB of disk. `make example` calls it; started again it continues
# where it was.
# Arguments go to the first training, e.g.: scripts/example.sh train.max_steps=10000
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

say "1/5 Recording 1600 demonstrations in ManiSkill"
$python -m simulation.record local=none split=color_object part=train episodes=1600 image_size=128 recoveries=0.2 \
    out=example/recordings
say "2/5 Recordings to dataset"
[ -d example/data/color_object/train ] ||
    $python prepare_conflict_data.py local=none split=color_object raw_dir=example/recordings data_dir=example/data
[ -d example/checkpoints/base ] || $python -m finetune.create_base local=none model=scratch out=example/checkpoints/base
# One process a core; torchrun gives each a single thread, which is how a small model trains fastest on a CPU.
train() { .venv/bin/torchrun --nproc_per_node=2 launch_finetune_local.py local=none experiment=scratch "$@"; }
say "3/5 Training all of a small N1.7 from random weights: it learns to reach for objects and to grasp"
train run_dir=example/runs/first output_dir=example/checkpoints/first "$@"
say "4/5 Training on, mostly on first frames: it learns which object is meant"
train model.base=example/checkpoints/first train.max_steps=3800 train.learning_rate=5e-4 \
    train.backbone_learning_rate=4e-4 train.early_frames=8 train.early_draws=6
say "5/5 Closed loop: 200 episodes with agreeing cues, 200 with conflicting ones"
$python evaluate_conflict.py local=none split=color_object mode=closed_loop episodes=200 \
    checkpoint=example/checkpoints/color_object report_dir=example/reports/color_object device=cpu
