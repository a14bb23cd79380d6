"""The drawn video of a whole command: its pieces and, of a file, its sound."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

from codetr_cli.errors import CodetrError
from codetr_cli.prediction.video.container import open_video
from codetr_cli.prediction.video.encoder import Sound, can_hold, join_pieces
from codetr_cli.prediction.video.inputs import VideoInput
from codetr_cli.prediction.video.segments import Totals


def join_with_sound(
    pieces: Sequence[Path], path: Path, video: VideoInput, totals: Totals, *, stride: int, max_pixels: int
) -> list[str]:
    """Joins the pieces of a video, and copies its sound if it is a file.

    Args:
        pieces: in order.
        path: the file, which is replaced.
        video: the source.
        totals: of the whole video.
        stride: of the frames.
        max_pixels: of a frame.

    Returns:
        sentences about what is missing.

    Raises:
        ResourceError: the disk is full or a piece is damaged.
    """
    base, lost = Fraction(*totals.time_base), ""
    if video.kind != "file":
        join_pieces(pieces, path, base)
        return []
    with suppress(CodetrError), open_video(video, max_pixels=max_pixels) as (container, _, _):
        if container.streams.audio:
            stream = container.streams.audio[0]
            lost = stream.codec_context.name if stream.codec_context else "of an unknown codec"
            if can_hold(lost) and not totals.jumps:
                end = totals.last_pts * base + stride / Fraction(*totals.rate)
                sound = Sound(container, stream, totals.first_pts * base, end, totals.shift * base)
                join_pieces(pieces, path, base, sound)
                return []
    join_pieces(pieces, path, base)
    return [f"The sound of {video.label} ({lost}) is not in the drawn video: it cannot be copied"] if lost else []
