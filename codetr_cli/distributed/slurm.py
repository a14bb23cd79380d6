"""SLURM: what its environment says about the processes of a job, and the batch script of a training.

A job step of one task a machine starts one launcher on each, which start the processes and do so again after a death. A
step of more tasks than machines has one task for each process; they are connected as they are.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.errors import ResourceError
from codetr_cli.files import write_text

# Steps with numbers from here on are no `srun` of a program: a batch script's own shell, an interactive one.
FIRST_SPECIAL_STEP = 0xFFFFFFF0
FOLDER = "slurm"  # of a run folder
WARN_S = 120  # before the time limit ends a job
# Words of the command that mean something for the one who submits, not for the job.
OWN_FLAGS = frozenset(("--slurm", "--fresh", "--json", "--dry-run"))
OWN_OPTIONS = frozenset(("--run", "--nodes", "--node-rank", "--rdzv-endpoint"))


@dataclass(frozen=True)
class SlurmStep:
    """The job step that this process is a task of.

    Attributes:
        job: number of the job.
        nodes: machines of the step.
        tasks: of the step, over all machines.
        node: number of this machine in the step.
        task: number of this task in the step.
        local_task: number of this task on its machine.
        first_host: name of the step's first machine.
        port: free for the processes to meet, as far as a number made from the job's can be.
    """

    job: str
    nodes: int
    tasks: int
    node: int
    task: int
    local_task: int
    first_host: str
    port: int

    @property
    def endpoint(self) -> str:
        """Where the machines meet."""
        return f"{self.first_host}:{self.port}"

    @property
    def is_task_per_process(self) -> bool:
        """Whether SLURM itself has started every process."""
        return self.tasks > self.nodes

    def environment(self) -> dict[str, str]:
        """The variables that torchrun would have set for this task."""
        return {
            "RANK": str(self.task),
            "WORLD_SIZE": str(self.tasks),
            "LOCAL_RANK": str(self.local_task),
            "MASTER_ADDR": self.first_host,
            "MASTER_PORT": str(self.port),
        }


def read_step(environ: Mapping[str, str]) -> SlurmStep | None:
    """The step that an environment belongs to; None outside of `srun`, also in a batch script's own shell."""
    step, job = environ.get("SLURM_STEP_ID", ""), environ.get("SLURM_JOB_ID", "")
    if not step.isdecimal() or int(step) >= FIRST_SPECIAL_STEP or not job.isdecimal():
        return None

    def number(*names: str) -> int:
        return next((int(environ[name]) for name in names if environ.get(name, "").isdecimal()), 0)

    nodelist = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    port = environ.get("MASTER_PORT", "")
    return SlurmStep(
        job=job,
        nodes=number("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES") or 1,
        tasks=number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") or 1,
        node=number("SLURM_NODEID"),
        task=number("SLURM_PROCID"),
        local_task=number("SLURM_LOCALID"),
        first_host=environ.get("MASTER_ADDR") or first_host(nodelist),
        # Below the ports that systems give away by themselves, and another one for each of a machine's jobs.
        port=int(port) if port.isdecimal() else 12000 + int(job) % 18000,
    )


def first_host(nodelist: str) -> str:
    """The first machine of a list such as `gpu[03-05,9],login1`: asked of `scontrol` where it is, else read here."""
    if shutil.which("scontrol"):
        asked = _run(["scontrol", "show", "hostnames", nodelist])
        if asked.returncode == 0 and asked.stdout.split():
            return asked.stdout.split()[0]
    # The first of each bracket: gpu[03-05,9]-ib -> gpu03-ib.
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", name.group()) if name else ""


def job_words(words: Sequence[str], run: Path) -> list[str]:
    """The command that a job runs for the command that submits it, which starts in `run` and continues there.

    Args:
        words: after `codetr`.
        run: the run folder.
    """
    kept: list[str] = []
    pending = iter(words)
    for word in pending:
        name = word.partition("=")[0]
        if name in OWN_OPTIONS:
            if name == word:
                next(pending, None)
        elif word not in OWN_FLAGS:
            kept.append(word)
    return [*kept, "--run", str(run.absolute())]


def batch_script(
    words: Sequence[str],
    *,
    name: str,
    log: Path,
    folder: Path,
    nodes: int,
    gpus: int,
    cpus: int,
    python: str | None = None,
) -> str:
    """A script for `sbatch`.

    What is not in it (partition, account, time limit) comes from `sbatch`'s own environment variables, such as
    SBATCH_PARTITION, or from the person who edits it.

    Args:
        words: after `codetr`.
        name: of the job.
        log: file for everything that the job writes.
        folder: where it runs.
        nodes: machines.
        gpus: on each machine; 0 asks for none.
        cpus: on each machine.
        python: the interpreter; this process's own when None.
    """
    command = shlex.join([python or sys.executable, "-m", "codetr_cli", *words])
    options = [
        f"--job-name={name}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus}",
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        f"--chdir={folder}",
        f"--output={log}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{WARN_S}",
    ]
    header = "\n".join(f"#SBATCH {option}" for option in options)
    return f"""#!/bin/bash
{header}

# {WARN_S} seconds before the time limit SLURM sends USR1: the training saves and leaves with exit code 143, and the job
# is put back into the queue, where it continues. After a preemption or the loss of a machine SLURM does that by itself.
# A job that a person cancels saves too, and stays cancelled.
again=no
trap 'again=yes; kill -USR1 "$training"' USR1
trap 'kill -TERM "$training"' TERM

srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
    {command} &
training=$!
wait "$training"
code=$?
while kill -0 "$training" 2>/dev/null; do # a signal has ended the waiting, not the training
    wait "$training"
    code=$?
done

if [ "$again" = yes ] && [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def write_batch(
    run: Path,
    words: Sequence[str],
    *,
    name: str,
    nodes: int,
    gpus: int,
    cpus: int,
    folder: Path,
    write: bool = True,
) -> tuple[Path, str]:
    """Writes the batch script of a command into the folder `slurm` of its run.

    Args:
        run: the run folder; it need not exist yet.
        words: of the command that submits, after `codetr`.
        name: see `batch_script`, as are the others.
        nodes: machines.
        gpus: on each machine.
        cpus: on each machine.
        folder: where the job runs.
        write: False only makes the text.

    Returns:
        the script and its text.
    """
    script = run / FOLDER / "train.sh"
    text = batch_script(
        job_words(words, run),
        name=name,
        log=script.parent / "%j.log",
        folder=folder,
        nodes=nodes,
        gpus=gpus,
        cpus=cpus,
    )
    if write:
        script.parent.mkdir(parents=True, exist_ok=True)
        write_text(script, text)
    return script, text


def submit(script: Path) -> str | None:
    """Hands a script to `sbatch`.

    Returns:
        the job's number; None where there is no `sbatch`.

    Raises:
        ResourceError: it refused; the script stays.
    """
    if shutil.which("sbatch") is None:
        return None
    asked = _run(["sbatch", "--parsable", str(script)])
    if asked.returncode != 0:
        raise ResourceError(
            f"sbatch refused {script}: {' '.join(asked.stderr.split()) or f'exit code {asked.returncode}'}. Edit the "
            "script, or set what it lacks, e.g. SBATCH_PARTITION, SBATCH_ACCOUNT or SBATCH_TIMELIMIT, and submit it "
            f"with `sbatch {script}`."
        )
    return asked.stdout.strip().partition(";")[0]


def become_process(step: SlurmStep) -> None:
    """Makes this task one of the processes of a training, as if torchrun had started it."""
    os.environ.update(step.environment())


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
