"""Experiments: the paper's settings as data, one training run, and the runner of many."""
