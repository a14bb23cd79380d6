"""`--slurm`: writes the batch script of a command into its output folder and submits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codetr_cli import console
from codetr_cli.commands._weights import hide_credentials

if TYPE_CHECKING:
    from codetr_cli.distributed.topology import Request
    from codetr_cli.training.plan import TrainJob


def submit_job(job: TrainJob, request: Request, words: Sequence[str], *, dry_run: bool) -> None:
    """Writes and submits the script of a training; a dry run only shows it.

    Args:
        job: as planned.
        request: nodes and processes.
        words: after `codetr`.
        dry_run: write and submit nothing.

    Raises:
        ConfigError: options or batch sizes that do not fit together.
        ResourceError: SLURM refused the script.
    """
    from codetr_cli.distributed.slurm import FOLDER, job_words
    from codetr_cli.training.plan import batch_sizes
    from codetr_cli.training.setup import choose_for

    train = job.settings.train
    batch_sizes(train.batch_size, train.micro_batch, (request.nodes or 1) * _processes(request))
    choice = choose_for(job, dry_run=dry_run)
    run = choice.path.absolute()
    script = run / FOLDER / "train.sh"
    name, workers = f"codetr-{job.settings.name}", job.settings.data.workers
    text = _script(job_words(hide_credentials(words), run), request, name=name, script=script, workers=workers)
    if dry_run:
        console.result_lines(text)
        console.result_json({"run": choice.path, "script": None, "job": None, "text": text})
        return
    console.info(choice.note)
    number = _write_and_submit(script, text)
    console.result_json({"run": choice.path, "script": script, "job": number})


def submit_command(words: Sequence[str], output: Path, request: Request, *, name: str, workers: int = 0) -> None:
    """Writes and submits the script of a verb with `--out`.

    Args:
        words: after `codetr`.
        output: folder or file of the results.
        request: nodes and processes.
        name: of the verb.
        workers: that read data for each process.

    Raises:
        ResourceError: SLURM refused the script.
    """
    from codetr_cli.distributed.slurm import FOLDER, job_words

    script = (output.parent if output.suffix else output).absolute() / FOLDER / f"{name}.sh"
    text = _script(
        job_words(hide_credentials(words), output, "--out"),
        request,
        name=f"codetr-{name}",
        script=script,
        workers=workers,
    )
    number = _write_and_submit(script, text)
    console.result_json({"out": output, "script": script, "job": number})


def _gpus(request: Request) -> int:
    """GPUs per node."""
    return 0 if request.device == "cpu" else request.gpus or 1


def _processes(request: Request) -> int:
    """Processes per node."""
    return _gpus(request) or request.procs or 1


def _script(words: Sequence[str], request: Request, *, name: str, script: Path, workers: int) -> str:
    from codetr_cli.distributed.slurm import batch_script

    return batch_script(
        words,
        name=name,
        log=script.parent / "%j.log",
        nodes=request.nodes or 1,
        gpus=_gpus(request),
        cpus=_processes(request) * (1 + workers),
        folder=Path.cwd(),
    )


def _write_and_submit(script: Path, text: str) -> str | None:
    """The job id; None where there is no `sbatch`."""
    from codetr_cli.distributed.slurm import submit
    from codetr_cli.result_files import free_file, write_result

    # The script of an earlier submission has done its work, and is replaced.
    script = free_file(script, force=True)
    with write_result(script, by="submit", force=True, parents=True) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # a shell needs the bytes of names
    number = submit(script)
    if number is None:
        console.warn(f"there is no sbatch here, so nothing was submitted: run `sbatch {script}` on a login node")
    else:
        console.result(f"submitted as job {number}; its output goes to {script.parent / f'{number}.log'}")
    console.result(f"batch script: {script}")
    return number
