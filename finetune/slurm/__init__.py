"""SLURM: the launcher, the job scripts, and the record of a run's attempts."""
