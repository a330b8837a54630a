"""What a run will need, worked out before it starts. Nothing here imports torch: a login node can run it."""
