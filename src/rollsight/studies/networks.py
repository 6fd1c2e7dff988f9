"""Older snapshots are pickles that name the network of MiniGrid's policies here; it is in `rollsight.training`."""

from rollsight.training.networks import MiniGridFeatures as MiniGridFeatures
