from __future__ import annotations

from pathlib import Path

from codetr_cli.commands._outputs import free_file, free_folder


def test_a_file_that_exists_gets_a_number_before_its_suffix(tmp_path: Path):
    file = tmp_path / "detections.json"
    assert free_file(file, force=False) == file
    file.touch()
    (tmp_path / "detections_2.json").touch()
    assert free_file(file, force=False) == tmp_path / "detections_3.json"
    assert free_file(file, force=True) == file


def test_a_folder_is_free_without_its_marker(tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").touch()
    assert free_folder(folder, "results.json", force=False) == folder
    (folder / "results.json").touch()
    assert free_folder(folder, "results.json", force=False) == tmp_path / "out_2"
    assert free_folder(folder, "results.json", force=True) == folder
