"""GR00T N1.7 for conflict splits: what a checkpoint is and how it acts. No training loop, no simulator."""
