"""Whole models as ONNX graphs in which every layer runs with its own choice, and ONNX Runtime that runs them."""
