"""The kinds of problems that a data set check reports, with severity, text and fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Args:
        severity: "error" stops training or makes its results wrong, "warning" costs quality, "info" needs no action.
        text: the problem, printed after a count: "3 <text>".
        fix: what to do; empty when no action is needed.
    """

    severity: Severity
    text: str
    fix: str = ""


KINDS: dict[str, Kind] = {
    # files of the layout
    "no_annotations": Kind(
        "error", "missing annotation file", "Put it there, e.g. by unpacking annotations_trainval2017.zip."
    ),
    "no_validation": Kind(
        "warning",
        "validation set missing",
        "Train with --no-eval, or add validation images with annotations as this layout has them, e.g. in a folder val "
        "beside train; in COCO's published one, val2017/ and its annotation file.",
    ),
    "no_training": Kind(
        "error",
        "training set missing",
        "Evaluation works; to train, add training images with annotations as this layout has them, e.g. in a folder "
        "train beside that of the others; in COCO's published one, train2017/ and its annotation file.",
    ),
    "no_image_folder": Kind(
        "error", "missing image folder", "Unpack the images there or link their folder to this name."
    ),
    "list_differs": Kind(
        "warning",
        "list file that disagrees with the annotation file",
        "codetr reads only the annotation file; delete the list and rerun `codetr prepare` to rewrite it.",
    ),
    "list_unreadable": Kind(
        "warning", "list file that cannot be read", "codetr reads only the annotation file; delete the list."
    ),
    "list_not_written": Kind("info", "list file that could not be written", "codetr does not need it."),
    # label files
    "image_without_labels": Kind(
        "info", "image(s) without a label file", "They are treated as images without objects."
    ),
    "labels_without_image": Kind(
        "warning", "label file(s) without an image", "They are not used: copy the images there, or remove the files."
    ),
    "shared_labels": Kind(
        "warning",
        "image(s) whose label file also belongs to another image",
        "Both have the same objects: rename one of them and its labels, or remove it.",
    ),
    # the annotation file as a whole
    "unreadable_json": Kind("error", "annotation file that cannot be read", "Check its permissions."),
    "truncated_json": Kind("error", "annotation file that is cut short", "Copy, unpack or export it again."),
    "not_json": Kind("error", "annotation file that is not JSON", "Export it again as COCO's instances JSON."),
    "wrong_schema": Kind(
        "error",
        "record(s) that do not follow COCO's instances format",
        "Fix these records or export the file again in COCO's instances format.",
    ),
    "no_image_size": Kind(
        "error",
        "image record(s) without width and height",
        "Add both, in pixels, or export the file again with them.",
    ),
    "number_as_text": Kind("info", "number(s) written as text", "Fine: read as numbers."),
    "name_is_number": Kind("info", "category name(s) that are numbers", "Fine: read as text."),
    "other_kind": Kind(
        "error",
        "annotation file of another kind than the other one or the settings (data.dataset)",
        "All images of LVIS have neg_category_ids: give them to all files or none, or correct data.dataset.",
    ),
    "no_images": Kind("error", "annotation file without images", "Export it again with its images."),
    "no_categories": Kind("error", "annotation file without categories", "Add the class list under 'categories'."),
    "only_small_images": Kind(
        "error",
        "training set whose usable boxes are all in images with a side under data.min_side",
        "Training skips these images: lower it, e.g. --set data.min_side=1.",
    ),
    "no_objects": Kind("error", "training set without a single usable box", "Check that it is the right file."),
    # ids
    "duplicate_image_id": Kind("error", "image id(s) used twice", "Give every image a unique id."),
    "duplicate_annotation_id": Kind(
        "warning",
        "annotation id(s) used twice",
        "codetr renumbers annotations, other tools lose some: number them 1, 2, 3, ...",
    ),
    "no_annotation_id": Kind(
        "info", "annotation(s) without an id", "Fine here; other tools need them numbered 1, 2, 3, ..."
    ),
    "zero_annotation_id": Kind(
        "info",
        "annotation with id 0",
        "Fine here; pycocotools treats a match with id 0 as no match: number from 1.",
    ),
    "duplicate_category_id": Kind("error", "category id(s) used twice", "Give every category a unique id."),
    "duplicate_category_name": Kind(
        "warning", "category name(s) used twice", "Rename or merge them: they are trained as different classes."
    ),
    "duplicate_file_name": Kind("warning", "file name(s) used by two images", "Merge the records of each file."),
    "unknown_image_id": Kind(
        "warning",
        "annotation(s) of an image that is not listed",
        "They are skipped: add the image to 'images' or remove them.",
    ),
    "unknown_category_id": Kind(
        "error", "annotation(s) of a category that is not listed", "Add the category to 'categories' or fix the id."
    ),
    "category_id_holes": Kind("info", "gap(s) between category ids", "Fine: outputs use the original ids."),
    "category_id_zero": Kind("info", "category with id 0", "Fine: outputs use the original ids."),
    "excluded_category": Kind(
        "warning",
        "class(es) whose annotations are all excluded from training",
        "They are trained as never present: as crowds, ignored, too small or outside their image. Annotate single "
        "objects of them, or remove the classes.",
    ),
    "unused_category": Kind(
        "warning",
        "class(es) without a single annotation",
        "They are trained as never present: remove or annotate them.",
    ),
    "categories_differ": Kind(
        "error",
        "class(es) that differ between the train and val annotation files",
        "Give both files the same 'categories': same ids, same names.",
    ),
    "category_ids_differ": Kind(
        "info",
        "class(es) with other ids in the val annotation file than in the train one",
        "Fine: classes are matched by their names.",
    ),
    # boxes
    "box_not_finite": Kind(
        "error", "box(es) with numbers that are not finite or far too large", "Remove or redraw these boxes."
    ),
    "box_negative": Kind(
        "error", "box(es) of negative width or height", "COCO boxes are (x, y, width, height): redraw or convert them."
    ),
    "box_normalised": Kind(
        "error",
        "annotation file whose boxes are all within 0..1",
        "Multiply x, width by the image width, y, height likewise.",
    ),
    "box_corners": Kind(
        "warning",
        "box(es) ending far outside their image, as if they were (x1, y1, x2, y2)",
        "COCO boxes are (x, y, width, height): convert the file if so.",
    ),
    "box_degenerate": Kind("warning", "box(es) thinner than a pixel", "They are excluded from training; redraw them."),
    "box_outside": Kind(
        "warning", "box(es) completely outside their image", "They are excluded from training; redraw them."
    ),
    "box_beyond_edge": Kind("info", "box(es) extending more than 2 px beyond the image's edge", "They are clipped."),
    "duplicate_box": Kind(
        "warning",
        "annotation(s) that repeat another one: same image, class and box",
        "They are trained on as further objects in the same place: remove them.",
    ),
    "box_of_two_classes": Kind(
        "info",
        "annotation(s) with the same box as one of another class in their image",
        "Fine if an object can have several classes: each is trained on.",
    ),
    "crowd": Kind(
        "info", "crowd annotation(s)", "They are excluded from training; evaluation ignores detections inside them."
    ),
    "crowd_without_rle": Kind(
        "warning", "crowd annotation(s) without a run-length mask", "Set iscrowd to 0 unless the box really is a group."
    ),
    "crowd_value": Kind("error", "annotation(s) whose iscrowd is neither 0 nor 1", "Use 0, or 1 for a group."),
    "crowd_number": Kind("warning", "annotation(s) whose iscrowd is neither 0 nor 1", "They count as groups: use 1."),
    "ignore_value": Kind("error", "annotation(s) whose ignore is neither 0 nor 1", "Use 0, or 1 to ignore them."),
    "ignored": Kind("info", "annotation(s) marked 'ignore'", "They are excluded from training."),
    "difficult": Kind("info", "object(s) marked difficult", "They are not trained on, and ignored in evaluation."),
    "bad_area": Kind("error", "annotation(s) whose area is not a number", "Use the number of pixels, or omit area."),
    "area_not_positive": Kind(
        "warning",
        "annotation(s) with an area of zero or less",
        "They are excluded from training: fix or omit area.",
    ),
    "excluded_objects": Kind(
        "info", "annotation(s) in all that are not trained on", "Each is counted above once, by its first reason."
    ),
    "broken_outline": Kind(
        "warning",
        "annotation(s) with a broken mask",
        "Fine for boxes; training with masks stops at the first of them: fix or remove them.",
    ),
    "some_outlines_missing": Kind(
        "info",
        "annotation(s) without a mask, while others have one",
        "Fine for boxes; presets that train masks or paste objects by their masks need all.",
    ),
    "many_objects": Kind(
        "warning",
        "image(s) with more objects than the presets have queries (900)",
        "Raise --set model.num_queries=... or cut the images into tiles.",
    ),
    "no_objects_image": Kind("info", "image(s) without objects", "Fine: they stay in training as background."),
    # image files
    "outside_file": Kind(
        "error",
        "image name(s) that lead out of the data set's folder",
        "Copy the files into it and correct the names, or read them where they are with --set data.allow_outside=true.",
    ),
    "renamed_file": Kind(
        "info", "image(s) whose file has a similar name, and no other image does", "Fine: these files are read."
    ),
    "missing_file": Kind(
        "error", "image file(s) missing", "Copy them there or remove their records from the annotation file."
    ),
    "unreadable_file": Kind("error", "image file(s) that cannot be opened", "Check permissions and the disk."),
    "empty_file": Kind("error", "image file(s) of zero bytes", "Copy them again or remove their records."),
    "truncated_file": Kind("error", "image file(s) cut short", "Copy them again or remove their records."),
    "not_an_image": Kind("error", "file(s) that are not images", "Replace them or remove their records."),
    "unsupported_file": Kind(
        "error", "image(s) of a format or content that is not supported", "Convert them to JPEG or PNG."
    ),
    "too_many_pixels": Kind(
        "error",
        "image(s) with too many pixels",
        "Shrink or tile them; if that is intended, raise --set data.max_pixels=...",
    ),
    "no_pixels": Kind("error", "image(s) of zero width or height", "Replace them or remove their records."),
    "size_differs": Kind(
        "error",
        "image(s) whose size differs from the annotation file's",
        "Restore the original images, or fix width, height and boxes of these records.",
    ),
    "rotation_differs": Kind(
        "warning",
        "image(s) that EXIF rotates by 90 degrees while the annotation file has the size before rotation",
        "Their boxes are probably wrong: rotate the pixels permanently (e.g. `exiftran -ai`), or fix the records.",
    ),
    "rotated": Kind(
        "info", "image(s) rotated by their EXIF flag on reading", "Fine when boxes were drawn on the rotated image."
    ),
    "small_image": Kind("info", "image(s) with a side under 32 px", "They are excluded from training, as published."),
    "misnamed_file": Kind(
        "info", "image(s) whose file extension names another format", "Fine: formats are detected by content."
    ),
    "unusual_pixels": Kind(
        "info", "image(s) not stored as 8-bit RGB (grey, palette, CMYK, alpha, 16 bits)", "Fine: read as 8-bit RGB."
    ),
    "decode_failed": Kind("error", "image(s) that OpenCV cannot decode", "Replace them or remove their records."),
    "decode_complained": Kind(
        "warning",
        "image(s) for which the decoder reports damaged pixels",
        "Copy them again; they are used as decoded.",
    ),
    # what was found in the folder and is not used
    "image_without_annotation": Kind(
        "warning",
        "image(s) without annotations",
        "They are not used: annotate them, those without objects too, as empty.",
    ),
    "unlisted_annotation": Kind(
        "info", "annotation file(s) that no list of images names", "They are not used: add their names to a list."
    ),
    "outside_splits": Kind(
        "warning",
        "annotated image(s) in none of the folders or lists of splits",
        "They are not used: move them into the folder of a split, such as train/.",
    ),
    "linked_folder": Kind(
        "info", "link(s) to folders", "They are not searched: copy what they lead to if it is part of the data set."
    ),
    "other_xml": Kind("info", "XML file(s) that are no annotation files of this layout", "They are not used."),
    "object_without_box": Kind(
        "warning", "object(s) or shape(s) without a box", "They are not used: draw boxes around them."
    ),
    "object_without_class": Kind("warning", "shape(s) without a class", "They are not used: choose a class for them."),
    "mask_as_box": Kind("info", "mask(s) of which only the bounding box is read", "Fine for boxes."),
    "deleted_object": Kind("info", "object(s) marked as deleted", "They are not used."),
    "second_annotation": Kind(
        "warning", "annotation(s) of an image that has others", "The first are used: remove one of them."
    ),
    "cancelled": Kind("info", "annotation(s) that were cancelled", "They are not used."),
    "not_annotated": Kind(
        "warning", "task(s) that nobody has annotated", "They are not used: annotate them, as empty where nothing is."
    ),
    "predictions": Kind("info", "prediction(s) of models", "They are not used: accept them as annotations if right."),
    "unchecked": Kind(
        "warning", "task(s) whose objects are predictions that nobody has checked", "They are used as annotations."
    ),
    "row_without_image": Kind(
        "warning", "row(s) of images that are not in the folder", "They are not used: copy the images into it."
    ),
    "absent_class": Kind("info", "row(s) that state that an image does not have a class", "They are not used."),
    "other_file": Kind("info", "file(s) that are no annotations of this layout", "They are not used."),
    "alike_class_names": Kind(
        "warning",
        "class names that differ only in case, spaces, `_` or `-`",
        "They are trained as different classes: give them one name if they are one class.",
    ),
    "duplicate_image": Kind(
        "warning",
        "image file(s) with the same content as another one of their split",
        "They count several times: remove the copies, or keep one with all annotations.",
    ),
    "leaked_image": Kind(
        "warning",
        "image file(s) with the same content as one of another split",
        "Evaluation on images of the training is too good: keep each in one split.",
    ),
    "copies_not_compared": Kind(
        "info",
        "image file(s) that may be copies of others and were not compared",
        "Files of equal size and start are read up to 8 GB or 20,000 of them.",
    ),
    "unreadable_format": Kind(
        "warning", "picture(s) of formats that cannot be read", "They are not used: save them as JPEG or PNG."
    ),
    "unlistable_folder": Kind("warning", "folder of images that cannot be listed", "Check its permissions."),
    "own_drawing": Kind("info", "image(s) that codetr has drawn", "They are results, and not used."),
    "debris": Kind(
        "info",
        "hidden file(s) or folder(s), or those of the system",
        "They are never used, like all whose names begin with a dot, and Thumbs.db and __MACOSX.",
    ),
    "unlisted_file": Kind("info", "image file(s) that no annotation file mentions", "They are not used."),
}
UNUSABLE_FILES = frozenset(
    {
        *("missing_file", "unreadable_file", "empty_file", "truncated_file", "not_an_image", "unsupported_file"),
        *("too_many_pixels", "no_pixels", "size_differs", "decode_failed"),
    }
)
"""Kinds of image files that training and evaluation skip with `data.bad_files=skip`."""
