"""Whole models as ONNX graphs in which every layer has its own choice, run by ONNX Runtime."""
