"""Quantization of weights and activations: scales, rounding, GPTQ, bias correction. Pure tensor arithmetic."""
