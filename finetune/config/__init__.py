"""Configuration of the entry scripts: Hydra composes configs/, dataclasses give types, checks refuse bad input early."""
