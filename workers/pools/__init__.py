"""Pools of workers, in this process or on a Ray cluster, behind one protocol."""
