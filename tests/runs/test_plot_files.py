from __future__ import annotations

from pathlib import Path

from codetr_cli.runs.plot_files import PlotFiles, picture_name, plot_files


def test_plots_and_pictures_of_a_run(tmp_path: Path):
    assert plot_files(tmp_path) == PlotFiles()
    folder = tmp_path / "plots" / "val_images"
    folder.mkdir(parents=True)
    for name in ("losses.png", "ap.png", ".ap.png.1.tmp", "notes.txt"):
        (folder.parent / name).touch()
    for image, step in ((0, 5), (1, 5), (0, 10), (1, 10), (10, 10)):
        (folder / picture_name(image, step)).touch()
    (folder / "mine.webp").touch()
    (folder / "2_00000010.webp").symlink_to("/etc/passwd")
    found = plot_files(tmp_path)
    assert [path.name for path in found.plots] == ["ap.png", "losses.png"]
    assert found.written is not None
    assert [(each.image, each.step) for each in found.val_pictures] == [(0, 5), (0, 10), (1, 5), (1, 10), (10, 10)]
    assert [(each.image, each.step) for each in found.newest_pictures] == [(0, 10), (1, 10), (10, 10)]
