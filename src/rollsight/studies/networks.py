"""Under this name older snapshots hold the network of MiniGrid's policies; it is defined in `rollsight.training`."""

from rollsight.training.networks import MiniGridFeatures as MiniGridFeatures
