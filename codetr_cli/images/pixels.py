"""One rule for the pixels of all images, whether they come from a file, an array, a tensor or Pillow: 8-bit RGB.

Grey gets three equal channels. Alpha is dropped, so that hidden pixels show. Of 16 bits the upper 8 stay. Values in
floating point are from 0 to 1, which become 0 to 255; others have no range that everybody agrees on and are refused.
False and true are black and white.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGB and alpha"}


class PixelError(ValueError):
    """Pixels that no rule makes an image of; the message is a phrase that says what was found and what is accepted."""


def to_rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """The pixels as (H, W, 3) uint8 RGB, in C order.

    Args:
        pixels: (H, W) or (H, W, 1 to 4), grey or RGB, perhaps with alpha: bool, uint8, uint16, or floats in [0, 1].

    Raises:
        PixelError: another shape or type, no pixels, or floats outside [0, 1].
    """
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in CHANNELS):
        turned = pixels.ndim == 3 and pixels.shape[0] in CHANNELS
        hint = ": it seems to be (channels, H, W), which must be turned" if turned else ""
        raise PixelError(f"shape {pixels.shape} is neither (H, W) nor (H, W, 1 to 4){hint}")
    if not pixels.size:
        raise PixelError(f"shape {pixels.shape} has no pixels")
    if pixels.ndim == 3:
        pixels = pixels[:, :, :1] if pixels.shape[2] <= 2 else pixels[:, :, :3]
    else:
        pixels = pixels[:, :, None]
    return np.ascontiguousarray(np.broadcast_to(_eight_bits(pixels), (*pixels.shape[:2], 3)))


def _eight_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.newbyteorder("=") == np.uint16:
        return (pixels >> 8).astype(np.uint8)
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise PixelError("it has values that are not finite (NaN or infinity)")
        if low < 0 or high > 1:
            raise PixelError(
                f"floating-point values are in [0, 1], not {low:.4g} to {high:.4g}: values of 0 to 255 must be uint8, "
                "and normalization is done inside"
            )
        return (pixels.astype(np.float32) * 255).round().astype(np.uint8)
    raise PixelError(f"type {pixels.dtype} is not bool, uint8, uint16 or a floating-point type")


def rgb_of_inks(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB (h, w, 3) uint8 of CMYK (h, w, 4) uint8, where 255 is full ink, without a colour profile.

    Parity: OpenCV's integers, by which the published pipeline reads such JPEG files; Pillow's differ by up to 2.
    """
    inks, white = pixels[..., :3].astype(np.int32), 255 - pixels[..., 3:].astype(np.int32)
    return (white - (inks * white >> 8)).astype(np.uint8)
