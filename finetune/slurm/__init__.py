"""SLURM: the job scripts, the launcher, and the record of a run's attempts. Nothing here imports torch."""
