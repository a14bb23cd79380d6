"""`[data]`: the data set, and how its images are resized and augmented."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from codetr_cli.config.fields import MAX_LIST, Count, Fraction, Positive, Section, Side, Std, split_words

DatasetName: TypeAlias = Literal["coco", "lvis", "objects365"]
FormatName: TypeAlias = Literal["coco", "yolo", "voc", "cvat", "labelme", "label-studio", "csv", "parquet"]
BoxFormat: TypeAlias = Literal["xyxy", "xywh", "cxcywh", "relative-xyxy", "relative-xywh", "relative-cxcywh"]
YoloLabels: TypeAlias = Literal["boxes", "outlines"]


class DataConfig(Section):
    """The data set and how its images are resized and augmented. Sides are in pixels."""

    dataset: DatasetName = Field(
        "coco", description="Type of data set; coco covers every layout other than LVIS and Objects365."
    )
    format: FormatName | None = Field(
        None, description="Layout of the data sets' folders, where several are possible; none: by their content."
    )
    box_format: BoxFormat | None = Field(
        None,
        description="Meaning of a box's four numbers in CSV and parquet files that do not state it: corners, upper "
        "left corner and size, or centre and size; in pixels, or relative to the image's size.",
    )
    root: str | None = Field(None, description="Folder of the data set; none: $CODETR_DATA, else data/<dataset>.")
    extra_roots: Annotated[tuple[str, ...], BeforeValidator(split_words)] = Field(
        (),
        max_length=MAX_LIST,
        description="Folders of additional data sets in any known layout, merged with root by class name.",
    )
    annotations: str | None = Field(
        None, description="One annotation file of COCO's kind instead of root; a part is reserved, see val_fraction."
    )
    images: str | None = Field(
        None, description="Folder of the images of `annotations`; none: found near it by the file names in it."
    )
    train_images: str | None = Field(None, description="Folder of training images; none: <root>/train2017 for COCO.")
    train_annotations: str | None = Field(None, description="Training annotations; none: those found in root.")
    val_images: str | None = Field(None, description="Folder of validation images; none: <root>/val2017 for COCO.")
    val_annotations: str | None = Field(None, description="Validation annotations; none: those found in root.")
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2,
        description="Share of the images reserved for validation in a data set without validation and test images; 0: "
        "none.",
    )
    yolo_labels: YoloLabels | None = Field(
        None,
        description="Rows of more than 5 columns in YOLO's label files. boxes: the first four numbers after the class "
        "are the box, the others are not used; outlines: points; none: by kpt_shape of data.yaml, else outlines, or an "
        "error if they could be either.",
    )
    filter_empty: bool = Field(False, description="Skip training images without annotations.")
    oversample_threshold: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Repeat images of classes that occur in a smaller share of images; published for LVIS: 0.001."
    )
    mean: tuple[float, float, float] = Field((123.675, 116.28, 103.53), description="RGB mean, range 0 to 255.")
    std: tuple[Std, Std, Std] = Field((58.395, 57.12, 57.375), description="RGB standard deviation, range 0 to 255.")
    augmentation: Literal["detr", "lsj", "none"] = Field(
        "detr", description="detr: flip, multi-scale, random crop; lsj: large-scale jittering on a square canvas."
    )
    short_sides: tuple[Side, ...] = Field(
        tuple(range(480, 801, 32)),
        min_length=1,
        max_length=MAX_LIST,
        description="detr: short sides that training images are randomly resized to.",
    )
    long_side: Side = Field(1333, description="detr: maximum long side of training images.")
    crop_short_sides: tuple[Side, ...] = Field(
        (400, 500, 600),
        min_length=1,
        max_length=MAX_LIST,
        description="detr: short sides that images are resized to before a random crop.",
    )
    crop_long_side: Side = Field(4200, description="detr: maximum long side before a random crop.")
    crop_size: tuple[Side, Side] = Field((384, 600), description="detr: range of the sides of a random crop.")
    flip_probability: Fraction = Field(0.5, description="Probability of a horizontal flip.")
    canvas: Side | None = Field(None, description="lsj: side of the square that training images are padded to.")
    lsj_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (0.1, 2.0), description="lsj: range of the random factor from the canvas to the long side."
    )
    copy_paste: Literal["none", "masks", "boxes"] = Field(
        "none", description="lsj: paste objects of a second image by their masks or as whole boxes."
    )
    max_pasted: Count = Field(100, description="Maximum number of pasted objects per image, exclusive.")
    pad_divisor: Annotated[int, Field(gt=0, le=1024)] = Field(
        1, description="Pad images to a multiple of this many pixels."
    )
    min_side: Side = Field(32, description="Skip training images with a smaller side, as published.")
    max_pixels: Positive = Field(
        100_000_000, description="Images with more pixels are errors, detected from their header."
    )
    bad_files: Literal["error", "skip"] = Field(
        "error",
        description="Unreadable image files. error: stop at the first; skip: continue without them and list them in "
        "bad_files.txt of the run.",
    )
    allow_outside: bool = Field(
        False,
        description="Follow names of images in annotations and lists that lead out of the data set's folder.",
    )
    max_images: Positive | None = Field(
        None, description="Train on the first images only, for example to overfit a few."
    )
    workers: Annotated[int, Field(ge=0, le=1024)] = Field(
        2, description="Worker processes that load and augment images, per training process."
    )
    aspect_grouping: bool = Field(True, description="Build batches of images with the same orientation, as published.")

    @model_validator(mode="after")
    def _augmentation_is_complete(self) -> DataConfig:
        if self.augmentation == "lsj" and self.canvas is None:
            raise ValueError("augmentation 'lsj' needs a canvas: set data.canvas, for example to 1024")
        if self.augmentation != "lsj" and self.copy_paste != "none":
            raise ValueError(
                f"copy_paste {self.copy_paste!r} needs augmentation 'lsj': set data.copy_paste to \"none\" too"
            )
        if self.lsj_ratio[0] > self.lsj_ratio[1]:
            raise ValueError(f"lsj_ratio {self.lsj_ratio} must be (smaller, larger)")
        return self
