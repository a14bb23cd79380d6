"""Results of images."""

from __future__ import annotations

from codetr_cli.prediction.results import ImageResult


def result(number: int, *category_names: str, error: str | None = None) -> ImageResult:
    file = f"a/{number}.jpg"
    if error is not None:
        return ImageResult(number, file, error=error)
    names: dict[str, object] = {"file_name": f"{number}.jpg", "image_id": number}
    image = {**names, "file": file, "height": 8, "width": 8, "objects": {"disc": 1}, "seconds": 0.1, "drawn": None}
    records = [
        {**names, "category_name": name, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
        for name in category_names
    ]
    return ImageResult(number, file, image, records)
