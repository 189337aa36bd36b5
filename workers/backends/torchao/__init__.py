"""Layers by torchao's tensors, on CUDA and CPUs."""
