"""Recovers what quantization loses: learns weights and biases of a map whose choices stay fixed. Imports backends."""
