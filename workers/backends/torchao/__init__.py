"""Layers that run on torchao's tensors, on CUDA GPUs and CPUs."""
