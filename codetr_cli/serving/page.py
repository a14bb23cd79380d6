"""The page of `codetr demo`: drop a picture or a video, see the detections, download them.

It is made of Gradio's components, which this module imports when a page is built. Uploads are read by our decoders;
Gradio only passes their paths on. What a user has opened is in the state of their browser tab.
"""

from __future__ import annotations

import html
import importlib
import logging
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from codetr_cli.errors import CodetrError, DatasetError, ResourceError, StoppedError, machine_error
from codetr_cli.escaping import without_credentials
from codetr_cli.images.decoder import MAX_PIXELS, BrokenImageError, read_image
from codetr_cli.images.image_files import list_images
from codetr_cli.images.regions import ArrayRegions
from codetr_cli.prediction.picture_files import encode_picture, fitted
from codetr_cli.prediction.video.frames import FileFrames
from codetr_cli.prediction.video.inputs import VideoInput
from codetr_cli.runtime.signals import StopRequest
from codetr_cli.serving.page_detection import NO_TILES, PageDetector, PageOptions, SeenImage, is_video

logger = logging.getLogger(__name__)

MAX_EXAMPLES = 24
EXAMPLE_SIDE = 320
"""Pixels of the longer side of the picture of an example."""
IMAGE_COLUMNS = ["#", "class", "score", "x1", "y1", "x2", "y2"]
VIDEO_COLUMNS = ["class", "detections"]
TILE_CHOICES = [NO_TILES, "auto", "512x512", "768x768", "1024x1024"]
STYLE = """
.gradio-container { overflow: visible !important; }
.codetr-title { font-size: 1.25rem; overflow-wrap: anywhere; }
.codetr-status {
  min-height: 2.5rem; padding: 0.5rem 0.75rem; border-left: 4px solid var(--primary-500); overflow-wrap: anywhere;
}
.codetr-status.failed { border-color: #dc2626; background: rgba(220, 38, 38, 0.1); }
.codetr-picture img, .codetr-picture video { max-height: 75vh; object-fit: contain; }
.codetr-page { display: grid; grid-template-columns: minmax(280px, 1fr) minmax(0, 2fr); grid-template-rows: auto 1fr; }
.codetr-results {
  grid-column: 2; grid-row: 1 / span 2; position: sticky; top: 0; align-self: start;
  max-height: 100vh; overflow-y: auto;
}
@media (max-width: 800px) {
  .codetr-page { grid-template-columns: minmax(0, 1fr); grid-template-rows: auto; }
  .codetr-results { grid-column: 1; grid-row: 2; position: static; max-height: none; }
}
"""
"""Narrow screens show the results between the inputs and the settings; on wide ones they stay in sight."""
CHECK_FILES_S, KEEP_FILES_S = 600, 3600
"""How often uploads are checked, and the age at which they are deleted."""
NOTHING_OPEN = "Drop a picture or a video, or choose an example."


def import_gradio() -> Any:
    """The package Gradio.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise ResourceError(
            f'the page in the browser needs the package Gradio ({error}): pip install "codetr-cli[demo]"'
        ) from error


@dataclass(eq=False)
class OpenFile:
    """What a browser tab shows.

    Attributes:
        path: of the picture or video.
        folder: of its results.
        seen: what the network sees in the picture; None: a video, or not detected yet.
        stop: of the detection in a video.
        numbers: of the folders of results.
    """

    path: Path
    folder: Path
    seen: SeenImage | None = None
    stop: StopRequest = field(default_factory=lambda: StopRequest(lambda number: None, lambda: None))
    numbers: count[int] = field(default_factory=count)

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return is_video(self.path)

    def new_folder(self) -> Path:
        """A folder for the next results; of the earlier ones the last stays, which the browser may be reading."""
        number = next(self.numbers)
        shutil.rmtree(self.folder / str(number - 2), ignore_errors=True)
        return self.folder / str(number)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """New contents of the page; None hides a picture, a video or a download.

    Attributes:
        text: a sentence.
        failed: whether it is an error.
        columns: of the table.
        rows: of the table.
        picture: drawn.
        video: drawn.
        downloads: files to download: native JSON, COCO, picture or video.
    """

    text: str
    failed: bool = False
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    picture: Path | None = None
    video: Path | None = None
    downloads: Sequence[Path | None] = (None, None, None)


@dataclass(frozen=True)
class Example:
    """An example to click on.

    Attributes:
        path: of the picture or video.
        thumbnail: a small picture.
    """

    path: Path
    thumbnail: Path


def find_examples(folder: Path, thumbnails: Path) -> list[Example]:
    """The first pictures and videos of a folder; those that cannot be read are skipped with a warning.

    Args:
        folder: of the examples; pictures in its subfolders count.
        thumbnails: folder of the small pictures that are made of them.

    Raises:
        DatasetError: the folder cannot be read, or has neither pictures nor videos.
    """
    videos = sorted(path.name for path in folder.iterdir() if is_video(path) and path.is_file())
    thumbnails.mkdir(parents=True, exist_ok=True)
    found: list[Example] = []
    for name in [*videos[: MAX_EXAMPLES // 2], *sorted(list_images(folder))]:
        if len(found) == MAX_EXAMPLES:
            break
        path = folder / name
        try:
            pixels = first_frame(path) if is_video(path) else read_image(path)
        except (DatasetError, ResourceError) as error:
            text = error.advise("a limit of {}") if isinstance(error, BrokenImageError) else str(error)
            logger.warning("this example is skipped: %s", text)
            continue
        size = fitted((pixels.shape[0], pixels.shape[1]), EXAMPLE_SIDE)
        thumbnail = thumbnails / f"{len(found)}.webp"
        thumbnail.write_bytes(encode_picture(ArrayRegions(pixels).reduced(*size), ".webp", 80))
        found.append(Example(path, thumbnail))
    if not found:
        raise DatasetError(f"--examples {folder} contains no picture or video that can be read: choose another folder")
    return found


def first_frame(path: Path) -> NDArray[np.uint8]:
    """The first frame of a video, (H, W, 3) uint8 RGB.

    Raises:
        DatasetError: it is not a video, or has no frame that can be read.
        ResourceError: PyAV is not installed.
    """
    video = VideoInput(str(path), "file", path.stem, (path,))
    frame = next(FileFrames(video, max_pixels=MAX_PIXELS).frames(), None)
    if frame is None:
        raise DatasetError(f"{path} has no frame that can be read: it is damaged")
    return frame.decode()


class Page:
    """What happens on the page; `build` makes its components.

    Args:
        detector: finds the objects.
        folder: of all results, which the page may show.
        examples: to click on.
    """

    def __init__(self, detector: PageDetector, folder: Path, examples: Sequence[Example] = ()) -> None:
        self._detector, self._folder, self._examples = detector, folder, examples
        self._opened = WeakSet[OpenFile]()

    # ---------------------------------------------------------------------------------------------------------- events

    def open_file(self, path: str | Path | None, options: PageOptions) -> tuple[OpenFile | None, Shown]:
        """A file was dropped or chosen: a picture is detected at once, a video waits for the button."""
        if path is None:
            return None, Shown(text=NOTHING_OPEN)
        opened = OpenFile(Path(path), self._folder / secrets.token_urlsafe(16))
        self._opened.add(opened)
        if opened.is_video:
            return opened, Shown(text=f"{opened.path.name} is a video: press Detect to run the network on its frames.")
        return opened, self.detect(opened, options)

    def open_example(self, number: int, options: PageOptions) -> tuple[OpenFile | None, Shown]:
        """An example was clicked on."""
        return self.open_file(self._examples[number].path, options)

    def detect(
        self,
        opened: OpenFile | None,
        options: PageOptions,
        progress: Callable[[int, int | None], object] = lambda done, total: None,
    ) -> Shown:
        """Runs the network on the open file."""
        return _worded(opened, lambda: self._detect(opened, options, progress))

    def choose_tiles(self, opened: OpenFile | None, options: PageOptions) -> Shown | None:
        """Other tiles were chosen: the network runs again on a picture; a video waits for the button."""
        return None if opened is None or opened.is_video else self.detect(opened, options)

    def refine(self, opened: OpenFile | None, options: PageOptions) -> Shown | None:
        """Another score, NMS, number or class was chosen: the network does not run; None: nothing changes."""
        seen = None if opened is None else opened.seen
        if opened is None or seen is None:
            return None
        return _worded(opened, lambda: self._show(opened, seen, options))

    def stop(self, opened: OpenFile | None) -> None:
        """Ends the detection in a video after the current frames."""
        if opened is not None:
            opened.stop.number = 2

    def stop_all(self) -> None:
        """Ends the detection in all videos: the page is being closed."""
        for opened in list(self._opened):
            self.stop(opened)

    def _detect(
        self, opened: OpenFile | None, options: PageOptions, progress: Callable[[int, int | None], object]
    ) -> Shown:
        if opened is None:
            return Shown(text=NOTHING_OPEN)
        if opened.is_video:
            opened.stop.number = None
            video = self._detector.predict_video(
                opened.path, options, opened.new_folder(), stop=opened.stop, progress=progress
            )
            downloads = (video.lines, None, video.drawn)
            return Shown(
                text=video.summary, columns=VIDEO_COLUMNS, rows=video.rows, video=video.drawn, downloads=downloads
            )
        opened.seen = None
        opened.seen = self._detector.see(opened.path, options)
        return self._show(opened, opened.seen, options)

    def _show(self, opened: OpenFile, seen: SeenImage, options: PageOptions) -> Shown:
        image = self._detector.write_image(seen, options, opened.new_folder())
        return Shown(
            text=image.summary,
            columns=IMAGE_COLUMNS,
            rows=image.rows,
            picture=image.shown,
            downloads=(image.native, image.coco, image.drawn),
        )

    # ------------------------------------------------------------------------------------------------------ components

    def build(self, gr: Any) -> Any:
        """The components.

        Args:
            gr: the package Gradio.

        Returns:
            `gradio.Blocks`; `launch` needs `STYLE`.
        """
        return _Components(gr, self, self._detector, self._examples).blocks


def _worded(opened: OpenFile | None, show: Callable[[], Shown]) -> Shown:
    """What to show, or the error."""
    try:
        return show()
    except StoppedError:
        return Shown(text="Stopped.")
    except CodetrError as error:
        return Shown(text=_without_folder(str(error), opened), failed=True)
    except Exception as error:
        known = machine_error(error, "Use a smaller picture or larger tiles")
        if known is None:
            logger.exception("the page could not detect %s", opened and opened.path)
        text = str(known) if known else f"unexpected {type(error).__name__}: {error}. This is a bug in codetr."
        return Shown(text=_without_folder(text, opened), failed=True)


def _without_folder(text: str, opened: OpenFile | None) -> str:
    """A message without folders of this machine, which are none of the business of who uses the page."""
    text = without_credentials(text)
    return text if opened is None else text.replace(str(opened.path), opened.path.name)


class _Components:
    """Gradio's components, and which event changes which of them."""

    def __init__(self, gr: Any, page: Page, detector: PageDetector, examples: Sequence[Example]) -> None:
        self._gr, self._page, self._detector = gr, page, detector
        with gr.Blocks(
            analytics_enabled=False, title="codetr demo", fill_width=True, delete_cache=(CHECK_FILES_S, KEEP_FILES_S)
        ) as blocks:
            self.blocks = blocks
            gr.HTML(f'<h1 class="codetr-title">{html.escape(detector.title)}</h1>')
            self._opened = gr.State(None, delete_callback=close)
            with gr.Row(elem_classes="codetr-page"):
                with gr.Column(min_width=0):
                    self._inputs(examples)
                with gr.Column(min_width=0, elem_classes="codetr-results"):
                    self._results()
                with gr.Column(min_width=0):
                    self._settings()
            self._events()

    def _inputs(self, examples: Sequence[Example]) -> None:
        gr = self._gr
        self._file = gr.File(label="Picture or video", height=140)
        self._gallery = None
        if examples:
            self._gallery = gr.Gallery(
                [(str(each.thumbnail), each.path.name) for each in examples],
                label="Examples",
                show_label=False,
                columns=3,
                height=190,
                allow_preview=False,
                interactive=False,
                buttons=[],
            )
        with gr.Row():
            self._detect = gr.Button("Detect", variant="primary")
            self._stop = gr.Button("Stop", visible=False)

    def _settings(self) -> None:
        gr, detector, defaults = self._gr, self._detector, self._detector.defaults
        lowest = detector.lowest_score
        self._score = gr.Slider(lowest, 1, value=defaults.score, step=0.01, label="Minimum score")
        self._max_dets = gr.Slider(1, detector.most_dets, value=defaults.max_dets, step=1, label="Maximum detections")
        self._classes = gr.Dropdown(detector.class_names, multiselect=True, label="Classes", info="None chosen: all")
        can = detector.chooses_nms
        self._nms = gr.Radio(["none", "hard", "soft"], value=defaults.nms, label="NMS", visible=can)
        self._iou = gr.Slider(0, 1, value=defaults.nms_iou, step=0.05, label="IoU threshold of NMS", visible=can)
        self._tiles = gr.Dropdown(
            TILE_CHOICES,
            value=defaults.tiles,
            allow_custom_value=True,
            label="Tiles",
            info="For small objects in large pictures: off, auto, or WIDTHxHEIGHT. The network runs again.",
        )
        self._stride = gr.Slider(
            1, 30, value=1, step=1, label="Stride of a video", info="1: every frame, 2: every second one, ..."
        )

    def _results(self) -> None:
        gr = self._gr
        self._status = gr.HTML(_status(Shown(text=NOTHING_OPEN)))
        self._picture = gr.Image(
            label="Detections",
            show_label=False,
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
            elem_classes="codetr-picture",
        )
        self._video = gr.Video(
            label="Detections",
            show_label=False,
            interactive=False,
            visible=False,
            buttons=[],
            elem_classes="codetr-picture",
        )
        with gr.Row():
            labels = ("Download JSON", "Download COCO", "Download drawn")
            self._downloads = [gr.DownloadButton(label, visible=False, min_width=100, size="sm") for label in labels]
        self._table = gr.Dataframe(
            headers=IMAGE_COLUMNS,
            label="Table of detections",
            interactive=False,
            visible=False,
            max_height=400,
            buttons=[],
        )

    def _events(self) -> None:
        page, gr = self._page, self._gr
        chosen = [self._score, self._max_dets, self._classes, self._nms, self._iou, self._tiles, self._stride]
        shown = [self._status, self._picture, self._video, *self._downloads, self._table]
        network = {"concurrency_id": "network", "concurrency_limit": 1, "api_visibility": "private"}

        def open_file(before: OpenFile | None, path: str | None, *values: Any) -> list[Any]:
            close(before)
            opened, what = page.open_file(path, _options(values))
            return [opened, *self._updates(what)]

        def open_example(before: OpenFile | None, event: Any, *values: Any) -> list[Any]:
            close(before)
            opened, what = page.open_example(event.index, _options(values))
            return [opened, None, *self._updates(what)]

        def clear(before: OpenFile | None) -> list[Any]:
            close(before)
            return [None, *self._updates(Shown(text=NOTHING_OPEN))]

        def begin(opened: OpenFile | None) -> list[Any]:
            runs = opened is not None and opened.is_video
            return [gr.update(visible=runs), _status(Shown(text="")) if runs else gr.skip()]

        bar = gr.Progress()  # Gradio finds it as the default of a parameter

        def detect(opened: OpenFile | None, *values: Any, progress: Any = bar) -> list[Any]:
            def report(done: int, total: int | None) -> None:
                progress((done, max(done, total)) if total else (done, None), unit="frames")

            return self._updates(page.detect(opened, _options(values), report))

        def choose_tiles(opened: OpenFile | None, *values: Any) -> list[Any]:
            return self._updates(page.choose_tiles(opened, _options(values)))

        def refine(opened: OpenFile | None, *values: Any) -> list[Any]:
            return self._updates(page.refine(opened, _options(values)))

        self._file.upload(open_file, [self._opened, self._file, *chosen], [self._opened, *shown], **network)
        self._file.clear(clear, [self._opened], [self._opened, *shown], queue=False, api_visibility="private")
        if self._gallery is not None:
            # Gradio passes the event by this type, which exists only once Gradio is imported.
            open_example.__annotations__ = {"event": gr.SelectData}
            self._gallery.select(open_example, [self._opened, *chosen], [self._opened, self._file, *shown], **network)
        self._detect.click(begin, [self._opened], [self._stop, self._status], queue=False, api_visibility="private")
        self._detect.click(detect, [self._opened, *chosen], shown, **network).then(
            lambda: gr.update(visible=False), None, [self._stop], queue=False, api_visibility="private"
        )
        self._stop.click(page.stop, [self._opened], None, queue=False, api_visibility="private")
        self._tiles.change(choose_tiles, [self._opened, *chosen], shown, trigger_mode="always_last", **network)
        for control in (self._score, self._max_dets, self._classes, self._nms, self._iou):
            control.change(
                refine,
                [self._opened, *chosen],
                shown,
                trigger_mode="always_last",
                show_progress="hidden",
                concurrency_id="refine",
                concurrency_limit=2,
                api_visibility="private",
            )

    def _updates(self, shown: Shown | None) -> list[Any]:
        """The new contents of the components of results, in their order."""
        gr = self._gr
        if shown is None:
            return [gr.skip()] * 7
        return [
            _status(shown),
            gr.update(value=shown.picture and str(shown.picture), visible=shown.picture is not None),
            gr.update(value=shown.video and str(shown.video), visible=shown.video is not None),
            *(gr.update(value=path and str(path), visible=path is not None) for path in shown.downloads),
            gr.update(value={"headers": list(shown.columns), "data": shown.rows}, visible=bool(shown.rows)),
        ]


def close(opened: OpenFile | None) -> None:
    """Stops the detection in a file that a browser tab does not show any more, and deletes its results."""
    if opened is not None:
        opened.stop.number = 2
        shutil.rmtree(opened.folder, ignore_errors=True)


def _options(values: Sequence[Any]) -> PageOptions:
    score, max_dets, classes, nms, iou, tiles, stride = values
    return PageOptions(
        score=float(score),
        max_dets=int(max_dets),
        classes=tuple(classes or ()),
        nms=nms,
        nms_iou=float(iou),
        tiles=str(tiles or NO_TILES),
        stride=int(stride),
    )


def _status(shown: Shown) -> str:
    role, kind = ("alert", "codetr-status failed") if shown.failed else ("status", "codetr-status")
    return f'<div class="{kind}" role="{role}">{html.escape(shown.text)}</div>'
