"""PyTorch's own CPU kernels. Several may compute one choice; the backend uses the fastest on this processor."""
