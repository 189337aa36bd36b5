"""PyTorch's own CPU kernels: several may compute one choice, and the fastest on this processor is taken."""
