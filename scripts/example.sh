#!/usr/bin/env bash
# A policy that listens, from nothing: recordings made in ManiSkill, a small N1.7 with random weights, trained and
# evaluated in closed loop, on two CPU cores in one to two and a half hours, with 10 GB of disk. `make example` calls it;
# started again it continues where it was.
# Arguments go to the training, e.g.: scripts/example.sh train.max_steps=20000
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
split=split=instruction/color_object
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# Of the draws of six, 16 is one that records each value with two others: a word is then learned of more than one thing.
say "1/4 Recording 1600 demonstrations in ManiSkill: three colors, three shapes, six of their nine combinations"
$python -m simulation.record local=none $split part=train strategy=random_v3_d16 combinations=6 \
    episodes=1600 image_size=128 recoveries=0.2 out=example/recordings
say "2/4 Recordings to dataset"
$python prepare_conflict_data.py local=none $split raw_dir=example/recordings data_dir=example/data
[ -d example/checkpoints/base ] || $python -m finetune.create_base local=none model=scratch out=example/checkpoints/base
say "3/4 Training all of a small N1.7 from random weights"
# One process a core; torchrun gives each a single thread, which is how a small model trains fastest on a CPU.
.venv/bin/torchrun --nproc_per_node=2 launch_finetune_local.py local=none experiment=scratch "$@"
say "4/4 Closed loop, 200 episodes each: recorded combinations, others, conflicts, and all again told the other sentence"
checkpoint=example/checkpoints/instruction/color_object report=example/reports/instruction/color_object
if [ "$report/closed_loop.json" -nt "$checkpoint/config.json" ]; then
    echo "$report/closed_loop.html is there already; without $report/closed_loop.json it is made again"
else
    $python evaluate_conflict.py local=none $split mode=closed_loop "parts=[seen,unseen,conflict]" \
        "ablations=[other_instruction]" episodes=200 checkpoint=$checkpoint report_dir=$report device=cpu
fi
