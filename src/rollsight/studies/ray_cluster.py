"""Jobs spread over a Ray cluster, with the same progress as on one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rollsight.errors import RollsightError
from rollsight.studies.runner import ONE_THREAD, AJob, Job, Progress


def run_on_ray(jobs: Sequence[AJob], address: str) -> Iterator[Progress[AJob]]:
    """Run the jobs, one core each, wherever the cluster has one; their results come back to this process.

    address: of a running cluster, "auto" for the one that this machine belongs to, or "local" to start one here. The
    package must be installed on every machine. Progress tells only of jobs that began and that finished.

    Raises:
        RollsightError: Ray is not installed, or there is no cluster at the address. What a job raises is raised here.
    """
    try:
        import ray
    except ImportError as error:
        raise RollsightError("Ray is not installed: pip install 'rollsight[ray]'") from error
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray would warn of a coming change otherwise
    try:
        ray.init(address=address, runtime_env={"env_vars": ONE_THREAD}, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise RollsightError(f"There is no Ray cluster at {address!r}; start one with `ray start --head`.") from error
    try:
        remote = ray.remote(num_cpus=1)(_run)
        running = {remote.remote(job): job for job in jobs}
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # with its own type and sentence, without Ray's traceback in it
            yield Progress(job, job.rounds, finished=True, result=result)
    finally:
        ray.shutdown()


def _run(job: Job) -> Any:
    import torch

    torch.set_num_threads(1)
    return job.run(_ignore)


def _ignore(rounds: float, summary: Mapping[str, Any] | None) -> None:
    return None
