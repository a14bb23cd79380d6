"""What is in a data set: counts of a split, splits compared, copies of images, and the advice that follows."""
