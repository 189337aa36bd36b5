"""Whole models as graphs in which every layer has its own choice, run by OpenVINO."""
