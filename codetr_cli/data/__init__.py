"""Reading data sets: image files and annotations to batches."""
