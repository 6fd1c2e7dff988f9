"""Pure functions of runs, snapshots and scores."""
