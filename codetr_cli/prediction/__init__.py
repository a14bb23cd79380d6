"""What is done with detections of many files: inputs, results, labels, videos."""
