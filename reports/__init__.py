"""Figures and tables from the metrics of runs. Needs no TensorFlow."""
