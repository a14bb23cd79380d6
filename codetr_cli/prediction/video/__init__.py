"""Videos: files, streams, cameras and image sequences, frame by frame in constant memory."""
