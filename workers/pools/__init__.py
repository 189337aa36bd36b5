"""Pools of workers: the same seam in this process and on a Ray cluster."""
