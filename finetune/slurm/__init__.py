"""SLURM: the job scripts, the launcher, and the record of a run's attempts. Only `selftest` imports torch."""
