"""Detections as labels: which become labels, under which class, and files and data sets in the layouts of tools."""
