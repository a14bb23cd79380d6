"""`codetr train --slurm`: writes the batch script of a training into its run folder and submits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codetr_cli import console

if TYPE_CHECKING:
    from codetr_cli.distributed.topology import Request
    from codetr_cli.training.plan import TrainJob


def submit_job(job: TrainJob, request: Request, words: Sequence[str], *, dry_run: bool) -> None:
    """Writes and submits the script that runs `codetr` with the words; a dry run only shows it.

    Raises:
        ConfigError: options or batch sizes that do not fit together.
        ResourceError: SLURM refused the script.
    """
    from codetr_cli.distributed.slurm import FOLDER, batch_script, job_words, submit
    from codetr_cli.files import write_text
    from codetr_cli.training.plan import batch_sizes
    from codetr_cli.training.setup import choose_for

    gpus = 0 if request.device == "cpu" else request.gpus or 1
    nodes, processes = request.nodes or 1, gpus or request.procs or 1
    train = job.settings.train
    batch_sizes(train.batch_size, train.micro_batch, nodes * processes)
    choice = choose_for(job)
    run = choice.path.absolute()
    script = run / FOLDER / "train.sh"
    text = batch_script(
        job_words(words, run),
        name=f"codetr-{job.settings.name}",
        log=script.parent / "%j.log",
        nodes=nodes,
        gpus=gpus,
        cpus=processes * (1 + job.settings.data.workers),
        folder=Path.cwd(),
    )
    if dry_run:
        console.result(text.rstrip("\n"))
        console.result_json({"run": choice.path, "script": None, "job": None, "text": text})
        return
    script.parent.mkdir(parents=True, exist_ok=True)
    write_text(script, text)
    console.info(choice.note)
    number = submit(script)
    if number is None:
        console.warn(f"there is no sbatch here, so nothing was submitted: run `sbatch {script}` on a login node")
    else:
        console.result(f"submitted as job {number}; its output goes to {script.parent / f'{number}.log'}")
    console.result(f"batch script: {script}")
    console.result_json({"run": choice.path, "script": script, "job": number})
