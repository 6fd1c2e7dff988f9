"""What run folders, snapshots and scores say: one package per question, and learning curves."""
