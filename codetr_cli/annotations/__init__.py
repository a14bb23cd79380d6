"""What is in the files of a data set: annotations in COCO's tables, names, folders, findings."""
