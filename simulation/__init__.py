"""The conflict tasks in ManiSkill: what an episode is, its scene, an expert that solves it, and recordings."""
