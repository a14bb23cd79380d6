"""The tests mirror the package: `codetr_cli/room/module.py` is tested by `tests/room/test_module.py`."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGE, TESTS = REPOSITORY / "codetr_cli", REPOSITORY / "tests"

# Modules that another test file covers, and test files of several modules. Paths below the two folders.
TESTED_ELSEWHERE = {
    "analysis/label_evidence.py": "analysis/test_label_errors.py",
    "report/review_files.py": "commands/test_review.py",
    "analysis/data/co_occurrence.py": "analysis/data/test_statistics.py",
    "commands/bench/_end_to_end.py": "commands/bench/test_infer.py",
    "commands/_data.py": "commands/test_stats.py",  # also test_prepare.py
    "commands/_detection.py": "commands/test_predict.py",
    "commands/_review_findings.py": "commands/test_review.py",
    "commands/_review_inputs.py": "commands/test_review.py",
    "commands/_launch.py": "distributed/test_shared_work.py",
    "commands/_pictures.py": "commands/test_predict.py",
    "commands/_score_file.py": "commands/test_eval.py",
    "commands/_scores.py": "commands/test_eval.py",
    "commands/_verify.py": "commands/test_export_verify.py",
    "commands/_watch_screen.py": "commands/test_watch.py",
    "commands/_weights.py": "training/test_initial_weights.py",  # a URL in the place of a checkpoint
    "analysis/run_numbers.py": "analysis/test_run_comparison.py",
    "commands/runs.py": "runs/test_listing.py",
    "export/request.py": "export/test_job.py",  # only data
    "formats/converted.py": "formats/test_voc.py",  # also test_yolo.py: both formats are converted
    "formats/linked_folders.py": "formats/test_voc_folders.py",
    "formats/merged_table.py": "formats/test_merged.py",
    **{  # round trips through all layouts
        f"data/writers/{name}.py": "data/writers/test_write.py"
        for name in ("coco", "content", "csv_table", "cvat", "label_studio", "labelme", "options", "voc", "yolo")
    },
    "prediction/labels/interface.py": "prediction/labels/test_dataset.py",  # only names
    "prediction/labels/options.py": "prediction/labels/test_selection.py",  # only data
    **{
        f"config/{name}.py": "config/test_schema.py"
        for name in ("fields", "data_settings", "model_settings", "train_settings")
    },
    "data/writers/source.py": "data/writers/test_selection.py",
    "data/loading/worker_process.py": "data/loading/test_workers.py",
    "annotations/finding_kinds.py": "annotations/test_findings.py",
    "inference/given_pixels.py": "inference/test_arguments.py",
    "inference/detection_steps.py": "inference/test_detector.py",
    "inference/stage_seconds.py": "inference/test_stream.py",
    "images/image_header.py": "images/test_headers.py",
    "data/sample.py": "data/test_transforms.py",
    "data/targets.py": "data/test_batch.py",  # only types
    "distributed/part_frames.py": "distributed/test_part_files.py",
    "distributed/elastic_agent.py": "distributed/test_launcher.py",  # it runs inside the launcher
    "distributed/sharded_state.py": "distributed/test_fsdp.py",
    "evaluation/job.py": "commands/test_eval.py",
    "evaluation/result_folder.py": "commands/test_eval.py",
    "losses/build.py": "test_families.py",
    "losses/options.py": "losses/test_collaborative.py",  # only data
    "losses/random.py": "losses/test_denoising.py",
    "losses/record.py": "losses/test_collaborative.py",  # only data
    "losses/roi.py": "models/aux_heads/test_roi.py",
    "losses/rpn.py": "losses/test_collaborative.py",
    "models/attention.py": "models/test_encoder.py",
    "models/aux_heads/atss.py": "losses/test_atss.py",
    "models/mask_heads/fcn.py": "models/mask_heads/test_branch.py",
    "models/mask_heads/iou.py": "models/mask_heads/test_branch.py",
    "models/queries.py": "models/test_family.py",  # queries differ by family
    "ops/deform_attn_triton_kernels.py": "ops/test_deform_attn_triton.py",  # run by an interpreter where no GPU is
    "ops/deform_attn_triton_ordered.py": "ops/test_deform_attn_triton.py",
    "ops/deform_attn_triton_tuning.py": "ops/test_deform_attn_triton.py",  # with launches
    "inference/hub/pretrained.py": "inference/hub/test_publication.py",  # by the methods of Detector
    "inference/hub/tables.py": "inference/hub/test_folder.py",  # also by transformers
    "inference/draw_options.py": "inference/test_drawing.py",  # only data
    "prediction/drawings.py": "prediction/test_predictor.py",
    "prediction/job.py": "commands/test_predict.py",
    "prediction/outcome.py": "commands/test_predict.py",
    "prediction/parquet.py": "prediction/test_shards.py",
    "prediction/outputs.py": "prediction/test_shards.py",
    "export/accuracy.py": "export/test_verify.py",
    "export/diagnosis.py": "export/test_verify.py",  # the planted faults
    "export/metadata_differences.py": "export/test_verify.py",
    "export/onnx_sampling.py": "export/test_verify.py",
    "export/seen.py": "export/test_verify.py",
    "export/tolerances.py": "export/test_verify.py",  # numbers
    "prediction/results.py": "prediction/test_predictor.py",
    "prediction/targets.py": "prediction/test_shards.py",  # only data
    "prediction/video/joining.py": "prediction/video/test_recording.py",
    "prediction/video/job.py": "prediction/video/test_recording.py",
    "prediction/video/outcome.py": "prediction/video/test_recording.py",  # with broken frames
    "prediction/video/run.py": "commands/test_predict_video.py",
    "serving/api_errors.py": "serving/test_engine.py",
    "serving/api_schema.py": "serving/test_app.py",
    "serving/guard.py": "serving/test_app.py",  # also test_connections.py and test_hostile.py
    "serving/image_job.py": "serving/test_engine.py",
    "serving/requests.py": "serving/test_hostile.py",
    "serving/requirements.py": "commands/test_serve.py",
    "training/build.py": "commands/test_train.py",
    "training/preview.py": "commands/test_train.py",  # --dry-run
    **{f"report/{name}.py": "report/test_page.py" for name in ("charts", "markup", "pictures")},  # the parts of a page
    "report/facts.py": "report/test_report_file.py",
    "report/thumbnails.py": "report/test_page.py",
    "report/job.py": "commands/test_report.py",
    "report/sections/*.py": "report/test_evaluation_report.py",  # the parts of one page
    "training/reporter.py": "training/test_faults.py",  # only an interface
    "training/setup.py": "commands/test_train.py",
    "training/state.py": "training/test_oom.py",
    "training/validation.py": "commands/test_train.py",  # stand-ins replace it in the tests of the loop
    "weights/cached_files.py": "commands/test_cache.py",
    "weights/remote.py": "weights/test_download.py",
    "weights/tables.py": "weights/test_names.py",
    "weights/torch_vocabulary.py": "weights/test_torch_files.py",
}
OF_SEVERAL_MODULES = {
    "commands/bench/test_bench.py": "the words of all four commands",
    "inference/exported/test_network_batches.py": "batches that an exported file gets, and what is said of it",
    "commands/test_exported_files.py": "exported files in every verb that takes a checkpoint",
    "commands/test_predict_large.py": "images that are too large to be decoded whole",
    "commands/test_output_faults.py": "kills and full disks at every write of a command",
    "commands/test_one_annotation_file.py": "--ann and --images in every verb",
    "commands/test_several_sets.py": "training and evaluation on merged datasets",
    "commands/test_export_verify.py": "--verify and --verify-only of export",
    "export/test_parity.py": "graph and files of published architectures",
    "data/test_datasets.py": "LVIS and Objects365 from reading to training",
    "data/test_golden.py": "recorded images and targets of the published pipeline",
    "data/test_lsj.py": "transforms, copy-paste and datasets of large-scale jitter",
    "prediction/test_million.py": 'docs/predict.md, "A million images"',
    "prediction/test_kills.py": "predictions that are killed and started again",
    "ops/test_aarch64.py": "ops/deform_attn.c and ops/compile_kernel.py, on another processor",
    "data/test_one_reader.py": "prepare beside the readers of training and evaluation",
    "data/test_read_content.py": "what is read of published data sets",
    "data/test_open_counts.py": "prepare and the start of a training, on disks where each file costs time",
    "data/test_odd_images.py": "headers and images: rotated, animated, damaged",
    "distributed/test_resume_world_size.py": "a run that continues with other numbers of processes",
    "distributed/test_world_size.py": "two processes compute what one does",
    "evaluation/test_canvas.py": "images of a fixed size in evaluation and prediction",
    "inference/test_half_precision.py": "whole detections in bf16 and fp16 on an emulated GPU",
    "fuzz/test_formats.py": "broken and hostile files of Pascal VOC and YOLO folders",
    "test_hostile_files.py": "files from strangers in every verb",
    "fuzz/test_exports.py": "broken files of labelling tools, CSV and parquet files",
    "fuzz/test_caches.py": "broken files in the cache and in run folders",
    "fuzz/test_checkpoints.py": "random damage to headers and metadata",
    "fuzz/test_pickles.py": "random damage to pickles, training states and sharded states",
    "fuzz/test_images.py": "headers and decoding of broken images",
    "fuzz/test_json.py": "annotation and detections files that cost little",
    "serving/test_hostile.py": "requests from strangers",
    "test_serving_page.py": "docs/serving.md",
    "golden/test_cases.py": "recorded cases of the published code",
    "golden/test_runner.py": "the runner of recorded cases",
    "losses/test_full_precision.py": "the dtype of all costs and losses",
    "models/test_precision.py": "float32 against float64 of whole detections",
    "prediction/video/test_video_kills.py": "videos whose command is killed at random instants",
    "runs/test_former_runs.py": "a run folder of an earlier version",
    "test_count_presets.py": "the script that counts parameters and costs of presets",
    "test_dockerfile.py": "the Dockerfile",
    "test_docs.py": "documentation",
    "test_export_runtimes_page.py": "docs/export.md, the sections of OpenVINO and of the runner",
    "test_families.py": "two training steps of every family",
    "test_gpu_session.py": "the script of the first minutes on a GPU",
    "test_hub_page.py": "docs/hub.md",
    "test_house.py": "imports and sizes of modules",
    "test_mirror.py": "this file",
    "test_predict_page.py": "docs/predict.md",
    "test_export_page.py": "docs/export.md",
    "test_readme.py": "commands of the README and the documentation",
    "test_security.py": "the list of places in docs/security.md",
    "test_small_objects.py": "the benchmark of small objects",
    "test_startup.py": "import times and layers",
    "test_strict_commands.py": "commands from beginning to end on the emulated GPU",
    "test_strict_counts.py": "limits of kernels and waits on the emulated GPU",
    "test_strict_device.py": "an emulated GPU, and the package on it",
    "test_strict_others.py": "Apple's and Intel's GPUs, emulated",
    "test_strict_scenarios.py": "networks, precisions and options on the emulated GPU",
    "test_wheel.py": "the built package",
    "test_words.py": "words of user-facing texts",
    "test_zoo.py": "presets against the published zoo",
    "training/test_hostile_runs.py": "run folders that somebody has broken or forged",
    "training/test_killed_writes.py": "a training killed at each write of its folder",
    "training/test_faults.py": "disks, clocks and outputs that fail during a training",
    "training/test_kills.py": "a training killed at random instants",
    "weights/test_broken_checkpoints.py": "broken variants of checkpoints through all code that loads them",
    "weights/test_manifests.py": "names and shapes of all published files",
    "report/test_page_browser.py": "a report in a browser",
    "serving/test_page_browser.py": "the page of `codetr demo` in a browser",
}


def namesake(module: Path) -> Path:
    """The test file of a module; an underscore before its name does not count."""
    return module.parent / f"test_{module.name.lstrip('_')}"


def modules() -> list[Path]:
    """Modules below the package, without those that only name a package."""
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(path for path in paths if path.name not in ("__init__.py", "__main__.py"))


def test_every_module_has_its_test_file():
    missing = {module for module in modules() if not (TESTS / namesake(module)).is_file()}
    listed = {pattern: [path.relative_to(PACKAGE) for path in PACKAGE.glob(pattern)] for pattern in TESTED_ELSEWHERE}
    assert [pattern for pattern, paths in listed.items() if not paths] == []
    assert missing == {path for paths in listed.values() for path in paths if path.name != "__init__.py"}
    assert [path for path in TESTED_ELSEWHERE.values() if not (TESTS / path).exists()] == []


def test_every_test_file_has_its_module():
    expected = {namesake(module) for module in modules()}
    found = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert {str(path) for path in found - expected} == set(OF_SEVERAL_MODULES)


def test_nobody_imports_from_a_test_file():
    guilty = [
        f"{path.relative_to(TESTS)}: {line.strip()}"
        for path in TESTS.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith(("from tests.", "import tests.")) and ("test_" in line.split(" import ")[0])
    ]
    assert guilty == []
