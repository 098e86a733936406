"""A run from its start to its end: its parts, the loop, evaluation, checkpoints, and what it tells."""
