"""Parity with NVIDIA's original: what is measured, the table of it, and the rig for checkpoints of any size."""
