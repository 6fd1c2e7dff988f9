"""Adapters: one place per host library. They translate, nothing else."""
