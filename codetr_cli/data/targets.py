"""The target of an image, and the convention for sizes.

A target is a dict with these keys; sizes are (height, width) in pixels, G is the number of objects:
    boxes (G, 4) float32     xyxy in pixels of the resized image
    labels (G,) int64        index into `CocoDataset.class_names`
    iscrowd (G,) int64, area (G,) float32     as annotated, area in the original image
    image_id int             id in the annotation file
    orig_size, size          of the decoded file; of the resized image, without padding
    norm_size                by which boxes are normalised; equals `size` here
    pad_size                 the image's own padded size; a batch may be larger
    scale_factor (w, h)      exact new / old side of the last resize
    masks (G, h, w) uint8    bitmaps of 0 and 1 of `pad_size`, only where the network learns masks
    bad_files                unreadable files that this image replaces, (path, reason) each; only if there were any
On a canvas (large-scale jittering and its test images) the padding belongs to the image: `size`, `norm_size` and
`pad_size` are the canvas.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Target: TypeAlias = dict[str, Any]
