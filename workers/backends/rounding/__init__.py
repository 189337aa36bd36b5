"""Weights and activations to integers: scales, rounding, GPTQ, bias correction. Pure tensor arithmetic."""
