"""SLURM: the job step of this process as its environment describes it, and the batch script of a command.

A job step with one task per node runs one launcher per node, which starts the processes and restarts them after a
failure. A step with more tasks than nodes has one task per process; these join the process group directly.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codetr_cli.errors import ResourceError

# Step numbers from here on are not of `srun` but of a batch script's own shell or an interactive one.
FIRST_SPECIAL_STEP = 0xFFFFFFF0
FOLDER = "slurm"  # of an output folder
WARN_S = 120  # seconds before the time limit
# Options of the submitting command that the job must not have.
SUBMIT_FLAGS = frozenset(("--slurm", "--restart", "--fresh", "--json", "--dry-run"))
SUBMIT_OPTIONS = frozenset(("--nodes", "--node-rank", "--rdzv-endpoint"))


@dataclass(frozen=True)
class SlurmStep:
    """The job step that this process is a task of.

    Attributes:
        job: id of the job.
        nodes: number of nodes of the step.
        tasks: number of tasks of the step, over all nodes.
        node: rank of this node in the step.
        task: rank of this task in the step.
        local_task: rank of this task on its node.
        first_host: name of the step's first node.
        port: for the rendezvous, derived from the job id and probably free.
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
        """HOST:PORT of the rendezvous."""
        return f"{self.first_host}:{self.port}"

    @property
    def is_task_per_process(self) -> bool:
        """Whether SLURM itself started every process."""
        return self.tasks > self.nodes

    def environment(self) -> dict[str, str]:
        """The variables that torchrun would set for this task."""
        return {
            "RANK": str(self.task),
            "WORLD_SIZE": str(self.tasks),
            "LOCAL_RANK": str(self.local_task),
            "MASTER_ADDR": self.first_host,
            "MASTER_PORT": str(self.port),
        }


def read_step(environ: Mapping[str, str]) -> SlurmStep | None:
    """The job step of an environment; None outside `srun`, also in a batch script's own shell."""
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
        # Below the ephemeral ports, and different for each job of a node.
        port=int(port) if port.isdecimal() else 12000 + int(job) % 18000,
    )


def first_host(nodelist: str) -> str:
    """The first node of a list such as `gpu[03-05,9],login1`, by `scontrol` where it is installed."""
    if shutil.which("scontrol"):
        asked = _run(["scontrol", "show", "hostnames", nodelist])
        if asked.returncode == 0 and asked.stdout.split():
            return asked.stdout.split()[0]
    # The first of each bracket: gpu[03-05,9]-ib -> gpu03-ib.
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", name.group()) if name else ""


def job_words(words: Sequence[str], output: Path, option: str = "--run") -> list[str]:
    """The command that a job runs: the submitting one without its own options, and with a given output.

    Args:
        words: after `codetr`.
        output: the run folder, or where else the results go.
        option: that names it.
    """
    kept: list[str] = []
    pending = iter(words)
    for word in pending:
        name = word.partition("=")[0]
        if name in SUBMIT_OPTIONS or name == option:
            if name == word:
                next(pending, None)
        elif word not in SUBMIT_FLAGS:
            kept.append(word)
    return [*kept, option, str(output.absolute())]


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

    Partition, account and time limit come from `sbatch`'s own environment variables, such as SBATCH_PARTITION, or from
    the user who edits the script.

    Args:
        words: after `codetr`.
        name: of the job.
        log: file for the output of the job.
        folder: working directory.
        nodes: number of nodes.
        gpus: per node; 0 requests none.
        cpus: per node.
        python: the interpreter; None: that of this process.
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

# {WARN_S} seconds before the time limit SLURM sends USR1: the command saves and exits with code 143, and the job is
# requeued and continues. After a preemption or the loss of a node SLURM requeues it by itself.
# A job that the user cancels saves too, and stays cancelled.
again=no
trap 'again=yes; kill -USR1 "$command"' USR1
trap 'kill -TERM "$command"' TERM

srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
    {command} &
command=$!
wait "$command"
code=$?
while kill -0 "$command" 2>/dev/null; do # a signal interrupted wait, not the command
    wait "$command"
    code=$?
done

if [ "$again" = yes ] && [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def submit(script: Path) -> str | None:
    """Submits a script with `sbatch`.

    Returns:
        the job id; None where there is no `sbatch`.

    Raises:
        ResourceError: it refused; the script is kept.
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


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
