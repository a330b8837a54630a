"""What the jobs of a SLURM cluster need: one short job finds out, and a file of site defaults is proposed."""
