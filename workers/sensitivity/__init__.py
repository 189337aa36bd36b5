"""Estimates of how much quantizing each layer alone changes the outputs, without measuring one map per layer."""
