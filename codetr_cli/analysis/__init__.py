"""What goes wrong, and in which data? Numbers about detections and data sets, for reports and comparisons."""
