"""Hydra's launcher plugin for a Slurm cluster: a sweep is one array job, by submitit."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backdoor.errors import UserError, check_whole
from backdoor.sweep.launching import CallsLauncher

POLL_S = 1.0  # looking for results: files only
ASK_S = (2.0, 60.0)  # asking Slurm which jobs it still has: first so often, then less and less
# Since Slurm 22.05 srun does not take the number from sbatch; and torch would start a thread for every core it sees.
OWN_CORES = (
    'if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK '
    "OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}; fi"
)
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "sinfo")


class SlurmLauncher(CallsLauncher):
    """Each job is an element of a Slurm array job, one task on one node; this process waits for all.

    An element that runs out of time or is preempted is queued again and goes on from what it left in the store.
    hydra-submitit-launcher 1.2 ends its sweep with the first element that dies, and waits for ever for one on a
    cluster without accounting (sacct).

    Args:
        timeout_min, cpus_per_task, gpus_per_node, mem_gb: what an element may use; None = the partition's default.
        partition: where; None = the cluster's default.
        array_parallelism: most elements at a time.
        requeues: how often an element that runs out of time starts again.
        setup: shell lines before python, as `module load cuda`.
        additional_parameters: any other option of sbatch, as {account: me}.

    Raises:
        UserError: submitit is not installed, there is no Slurm or it does not answer, or a number below its least.
    """

    NAME, NEEDS = "submitit_slurm", "submitit"

    def __init__(
        self,
        *,
        timeout_min: int,
        partition: str | None = None,
        cpus_per_task: int | None = None,
        gpus_per_node: int | None = None,
        mem_gb: float | None = None,
        array_parallelism: int = 256,
        requeues: int = 3,
        setup: Sequence[str] | None = None,
        additional_parameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        counts = {"timeout_min": timeout_min, "cpus_per_task": cpus_per_task, "array_parallelism": array_parallelism}
        check_whole({f"hydra.launcher.{name}": value for name, value in counts.items() if value is not None})
        check_whole({"hydra.launcher.requeues": requeues}, least=0)
        check_slurm()
        self.requeues = requeues
        asked: dict[str, Any] = {
            "name": "backdoor",
            "nodes": 1,
            "tasks_per_node": 1,
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            "gpus_per_node": gpus_per_node,
            "mem_gb": mem_gb,
            "slurm_partition": partition,
            "slurm_array_parallelism": array_parallelism,
            "slurm_additional_parameters": None if additional_parameters is None else dict(additional_parameters),
            "slurm_setup": [*(setup or ()), OWN_CORES],
        }
        self.asked = {name: value for name, value in asked.items() if value is not None}

    def run_all(self, call: Callable[..., Any], calls: Sequence[tuple[Any, ...]], folder: Path) -> list[Any]:
        """Each call as an element of one array."""
        import submitit

        logs = folder.resolve() / ".submitit"
        executor = submitit.AutoExecutor(folder=logs, cluster="slurm", slurm_max_num_timeout=self.requeues)
        executor.update_parameters(**self.asked)
        try:
            jobs = executor.map_array(Again(call), *zip(*calls, strict=True))
        except submitit.core.utils.FailedJobError as error:
            said = last_line(str(error)) or "it says nothing"
            raise UserError(
                f"hydra/launcher={self.NAME}: sbatch refuses the jobs ({said}); change hydra.launcher's partition, "
                "timeout_min, mem_gb, ... to what `sinfo` and `scontrol show config` (MaxArraySize) allow"
            ) from None
        array = jobs[0].job_id.partition("_")[0]
        print(f"Slurm job {array}, {len(jobs)} elements; logs: {os.path.relpath(logs)}", flush=True)
        try:
            return wait(jobs)
        except BaseException:  # Ctrl-C, SIGTERM
            # At once: an element takes SIGTERM for the word that it will be queued again, and trains on.
            subprocess.run(["scancel", "--quiet", "--signal=KILL", array], check=False)
            subprocess.run(["scancel", "--quiet", array], check=False)
            raise


class Again:
    """A call that Slurm may interrupt: it is made once more, with the same arguments."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        """The call itself."""
        return self.call(*arguments)

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit queues when the time is over."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


def check_slurm() -> None:
    """Raises UserError if no job can be handed to Slurm from here."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"hydra/launcher=submitit_slurm: there is no {missing[0]} here; start the sweep on a login node of a Slurm "
            "cluster, or use hydra/launcher=joblib"
        )
    asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise UserError(
            f"hydra/launcher=submitit_slurm: Slurm does not answer ({last_line(asked.stderr)}); see that slurmctld "
            "runs and that SLURM_CONF, if set, names its slurm.conf"
        )


def wait(jobs: Sequence[Any]) -> list[Any]:
    """The result of each job, or how it died.

    submitit's own `wait` learns of a job that died from sacct alone, which a cluster without accounting lacks; here
    a job has died if two looks at the queue do not find it and it has left no result.
    """
    results: dict[int, Any] = {}
    pause, ask_at, missed = ASK_S[0], time.monotonic() + ASK_S[0], set[int]()
    while len(results) < len(jobs):
        time.sleep(POLL_S)
        left = [number for number in range(len(jobs)) if number not in results]
        ended = {number for number in left if jobs[number].paths.result_pickle.exists()}
        results |= {number: result_of(jobs[number]) for number in ended}
        if time.monotonic() < ask_at:
            continue
        queued = queue()
        if queued is not None:
            gone = {number for number in left if number not in ended and jobs[number].job_id not in queued}
            results |= {number: death_of(jobs[number]) for number in gone & missed}
            missed = gone
        pause = min(pause * 1.5, ASK_S[1])
        ask_at = time.monotonic() + pause
    return [results[number] for number in range(len(jobs))]


def queue() -> set[str] | None:
    """This user's jobs that wait, run or end, array elements each; None if Slurm does not answer now."""
    asked = subprocess.run(
        ["squeue", "--me", "--array", "--noheader", "--format=%i"], capture_output=True, text=True, check=False
    )
    return set(asked.stdout.split()) if asked.returncode == 0 else None


def result_of(job: Any) -> Any:
    """What a job's call returned, or what it raised."""
    try:
        return job.result()
    except Exception as error:
        return RuntimeError(last_line(str(error).partition("You can check full logs")[0].rstrip("- \n")))


def death_of(job: Any) -> RuntimeError:
    """Of a job without a result: its log's last error, which is srun's or slurmstepd's."""
    log = job.paths.stderr
    lines = log.read_text(errors="replace").splitlines() if log.exists() else ["it left no log"]
    said = last_line("\n".join([line for line in lines if "error:" in line] or lines))
    return RuntimeError(f"its process died: {said} ({log})")


def last_line(text: str) -> str:
    """The last line that holds something."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
