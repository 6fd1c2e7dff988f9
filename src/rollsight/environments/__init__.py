"""Environments: made by name for training, described in the run, and made again from that as they were trained in."""
