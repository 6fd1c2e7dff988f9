"""A verifiable-reward task with TRL's GRPO: its problems, its arms, and what many runs show."""
