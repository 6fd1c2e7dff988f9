"""A snapshot's policy in an environment: it acts, plays common episodes, and fills new rollout buffers."""
