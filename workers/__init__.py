"""How one candidate map is measured: tasks, calibration, kernels, accuracy, latency, memory, pools.

``workers.measurement``, ``workers.setup`` and ``workers.tasks`` are plain data and never import torch.
"""
