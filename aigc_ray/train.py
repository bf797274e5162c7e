"""Training on Ray Train: a run that can be killed anywhere and goes on when started again."""

from __future__ import annotations

import getpass
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aigc_ray
from aigc_ray import assess, checkpoint, config, lease, manifest, registry, report, storage
from aigc_ray import model as models
from aigc_ray.adversary import Adversary
from aigc_ray.cluster import session
from aigc_ray.errors import UserError
from aigc_ray.ingest import load_manifest
from aigc_ray.progress import Progress
from aigc_ray.schema import Schema
from aigc_ray.task import Networks, Task
from aigc_ray.tasks import task_class
from aigc_ray.training import Training
from aigc_ray.worker import description, split, work


def configure(task: str, data: str, changes: Mapping[str, Any]) -> tuple[Training, dict[str, Any]]:
    """The configuration of a training on a data set, and the data set's description."""
    facts = load_manifest(data)
    if facts["task"] != task:
        raise UserError(f"{data} was ingested for {facts['task']}, not for {task}")
    schema = Schema.from_json(facts["schema"])
    start = changes.get("init")
    # Fine-tuning keeps the architecture it starts from; what is written in `changes` wins.
    first = _opened(start).task if start else task_class(task)()
    if start and not replace(first, schema=schema).continues(first.schema):
        raise UserError(f"{start} was trained on other fields than {data} has")
    training = config.override(Training(task=replace(first, schema=schema)), changes)
    if schema.judged is not None:
        training.policy.check(schema.judged.values)  # now, not after hours of training
    count = facts["splits"]["train"]["rows"]
    if count < training.batch_size:
        share = training.batch_size // max(1, training.num_workers)
        raise UserError(
            f"the training split has {count} rows, fewer than batch_size={training.batch_size} "
            f"({share} a worker); set batch_size to {count // 2 * 2} or less"
        )
    return training, facts


# glibc hands every large block back when it is freed and fetches it again, zeroed page by page; a
# thread that is not the main one does so even more: together a fifth of a step on a CPU. The
# workers keep what they had. (malloc.h; other C libraries take no notice.)
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the most that it takes
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}


def keep_memory() -> None:
    """The same for this process, before it learns from generated rows at a run's end."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


# Ray Train's callbacks whose actors idle: one deals out data sets, of which Ray is given none; one
# cleans up what a private Ray takes along when it ends.
NO_DATA_SETS, CLEANER = "DatasetsCallback", "PlacementGroupCleanerCallback"


# --- a run ------------------------------------------------------------------------------------


def train(
    task: str,
    data: str,
    changes: Mapping[str, Any] | None = None,
    *,
    fresh: bool = False,
    register: bool = True,
) -> dict[str, Any]:
    """Train, evaluate and register a model; the same call resumes a run that was interrupted.

    Args:
        data: where `ingest` put a data set.
        changes: settings by dotted key.
        fresh: start another run, even where one of this configuration is unfinished or done.
        register: evaluate on the test split and put the model into the registry.

    Returns:
        run, its address, model (where registered), metrics by split, rates and seconds.

    Raises:
        UserError: settings, data or storage are wrong, or another job is at this run.
    """
    data = absolute(data)
    training, facts = configure(task, data, changes or {})
    record = {
        "task": task,
        "settings": config.to_json(training),
        "data": identity_of(facts),
    }
    name, uri, finished = claim(task, record, fresh)
    if finished is not None:
        print(f"run {name} is already done; --fresh starts another", file=sys.stderr)
        return finished
    print(
        f"run {name}: {sum(stage.steps for stage in training.task.stages())} steps", file=sys.stderr
    )
    began = time.monotonic()
    with lease.held(uri) as held:
        jobs = [
            job_of(replace(training, seed=training.seed + number), facts, data, where)
            | {"lease": held}
            for number, where in enumerate(folders(uri, training.members))
        ]
        for sentence in _doubts(jobs[0], training.task):
            say(f"warning: {sentence}")
        for number, job in enumerate(jobs):
            if len(jobs) > 1:
                print(f"member {number + 1} of {len(jobs)}", file=sys.stderr)
            if training.num_workers == 0:
                with Progress(job["run"]):
                    work(job)
            else:
                fit(job, training)
        summary = finish(jobs, training, name, time.monotonic() - began, register=register)
        storage.write_json(storage.join(uri, "summary.json"), summary)
    return summary


def folders(uri: str, members: int) -> list[str]:
    """Where the members of an ensemble train: the first in the run's own folder."""
    return [uri, *(storage.join(uri, "members", f"{number:02d}") for number in range(1, members))]


def claim(
    kind: str, record: Mapping[str, Any], fresh: bool
) -> tuple[str, str, dict[str, Any] | None]:
    """Name and address of the run that `record` identifies, and its summary where it is done."""
    identity = json.dumps(record, sort_keys=True)
    stem = f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    runs = storage.join(storage.home(), "runs")
    taken = [int(n.rpartition("-")[2]) for n in storage.children(runs) if n.startswith(stem + "-")]
    ordinal = max(taken, default=0) + (1 if fresh or not taken else 0)
    name = f"{stem}-{ordinal}"
    uri = storage.join(runs, name)
    if storage.exists(storage.join(uri, "summary.json")):
        return name, uri, storage.read_json(storage.join(uri, "summary.json"))
    if not storage.exists(storage.join(uri, "run.json")):
        known = {"name": name, "created": now(), "by": getpass.getuser()}
        storage.write_json(storage.join(uri, "run.json"), known | dict(record))
    return name, uri, None


def job_of(training: Training, facts: dict[str, Any], data: str, uri: str) -> dict[str, Any]:
    """What a worker needs to know, as plain values."""
    return {
        "task": training.task.name,
        "schema": facts["schema"],
        "settings": config.to_json(training),
        "data": data,
        "description": facts,
        "run": uri,
    }


def fit(job: dict[str, Any], training: Training, callbacks: Sequence[Any] = ()) -> None:
    """Run the workers; start them again, from the last checkpoint, when one of them dies."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ctrl-C stays what it is in Python: Ray's handler would outlive the training."""

        def _create_default_callbacks(self) -> list[Any]:
            """Without the actors that would idle beside the training."""
            idle = {NO_DATA_SETS, CLEANER} if private else {NO_DATA_SETS}
            made = super()._create_default_callbacks()
            return [callback for callback in made if type(callback).__name__ not in idle]

    with session(cpus=training.num_workers + 2) as private, Progress(job["run"]):
        for crashes in range(training.max_failures + 1):
            trainer = Trainer(
                work,
                train_loop_config=job,
                torch_config=TorchConfig(backend="nccl" if training.gpu else "gloo"),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=training.num_workers, use_gpu=training.gpu
                ),
                run_config=ray.train.RunConfig(
                    # Checkpoints are our own, so each start is a new run to Ray. Its own retries
                    # are off: it would also repeat what fails the same way each time.
                    name=f"start-{time.time_ns():x}",
                    storage_path=storage.join(job["run"], "ray"),
                    callbacks=list(callbacks),
                    worker_runtime_env={"env_vars": KEEP_MEMORY},
                ),
            )
            try:
                trainer.fit()
                return
            except ray.train.TrainingFailedError as fault:
                cause = _cause(fault)
                if not isinstance(cause, WorkerDiedError) or crashes == training.max_failures:
                    raise cause from fault
                print(f"{cause}; starting again from the last checkpoint", file=sys.stderr)


class WorkerDiedError(RuntimeError):
    """A worker's process ended by itself: killed, out of memory, or with its machine."""


def _cause(fault: Exception) -> Exception:
    """What went wrong in the workers, out of what Ray wrapped it in.

    When one worker fails the others lose their connection to it and fail too: an error of the
    work's own says most, then a worker that is gone, then what the others saw of it.
    """
    from ray.train.v2._internal.exceptions import RayTrainError

    failures = getattr(fault, "worker_failures", None)
    if not failures:
        return RuntimeError(f"the training could not go on: {fault}")
    died = []
    for rank, cause in failures.items():
        if isinstance(cause, UserError):
            return cause
        # Ray's own errors say that it lost the worker; others were raised by the work.
        if isinstance(cause, RayTrainError) or any(sign in str(cause) for sign in LOST_PEER):
            died.append(rank)
        else:
            return RuntimeError(f"a worker failed: {type(cause).__name__}: {str(cause).strip()}")
    return WorkerDiedError(f"worker {' and '.join(map(str, died))} died")


LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe")


# --- the end ----------------------------------------------------------------------------------


def finish(
    jobs: Sequence[dict[str, Any]],
    training: Training,
    name: str,
    seconds: float,
    *,
    register: bool = True,
    uri: str | None = None,
    search: Mapping[str, Any] | None = None,
    table: str = "",
) -> dict[str, Any]:
    """Judge and measure what a run has learned, write its report and register the model.

    Args:
        jobs: one a member.
        uri: where report and model go; the first job's own folder, unless a sweep chose the run.
        search: facts of the sweep, for the model's card.
        table: the sweep's trials as HTML, for the report.

    Returns:
        The summary, which the caller writes.
    """
    task, job = training.task, jobs[0]
    uri = uri or job["run"]
    members, extras = zip(*(_learned(task, training, one) for one in jobs), strict=True)
    extra = extras[0]
    last = extra["history"][-1]
    info: dict[str, Any] = description(job) | {
        "created": now(),
        "run": name,
        "objective": list(task.objective),
        "seeds": [one["settings"]["seed"] for one in jobs],
        "training": {
            "steps": extra["step"],
            "batch_size": training.batch_size,
            "workers": training.num_workers,
            "members": len(jobs),
            "seconds": round(sum(one["seconds"] for one in extras), 2),
            "rows_per_second": round(last["rows_per_second"], 1),
            "machine": extra["machine"],
            "chosen_at_step": extra["best"]["step"],
            "kept": ", ".join(
                f"{network} of step {moment['step']}"
                for network, moment in extra.get("moments", {}).items()
            ),
            **({"began_with": _began_with(training.init)} if training.init else {}),
            **(search or {}),
        },
        "data": _data(job),
        "calibration": None,
        "limits": _doubts(job, task),
        "code_version": aigc_ray.__version__,
    }
    model = models.Model(task, members, info)
    assess.admit(model, job)
    assess.judge(model, job, training.policy)
    measure(model, job, ["val", "test"] if register else ["val"])
    if register:
        examine(model, job, "test", training.transfer_steps)
    summary = {
        "run": name,
        "uri": uri,
        "task": task.name,
        "metrics": info["metrics"],
        "training": info["training"],
        "seconds": round(seconds, 1),
        "warnings": info["limits"],
    }
    pictures = [*assess.pictures(model, job, "test" if register else "val")]
    page = report.render(info, extra["history"], pictures, task.objective[0], table)
    storage.write_bytes(storage.join(uri, "report.html"), page)
    summary["report"] = storage.join(uri, "report.html")
    with tempfile.TemporaryDirectory(prefix="aigc-") as temporary:
        folder = Path(temporary)
        models.write(folder, [member.state_dict() for member in members], info, model.outliers)
        if register:
            (folder / "report.html").write_bytes(page)
            summary["model"] = f"{task.name}:{registry.register(task.name, folder)}"
        else:
            manifest.seal(folder)  # a MODEL all the same, by its address
            storage.upload(folder, storage.join(uri, "model"), last=manifest.NAME)
    return summary


def _began_with(start: str) -> str:
    """The model that a training started from, with what had been spent on that one."""
    known = storage.read_json(str(registry.fetch(start) / "model.json"))["training"]
    before = f", which began with {known['began_with']}" if "began_with" in known else ""
    spent = f"{known['steps']} steps of {known['batch_size']} rows in {known['seconds']:.0f} s"
    return f"{start} ({spent}){before}"


def _learned(
    task: Task, training: Training, job: dict[str, Any]
) -> tuple[Networks, dict[str, Any]]:
    """A finished training's averaged networks, those that the objective chooses from their best."""
    adversary = Adversary(task, seed=training.seed)
    taken = checkpoint.load(storage.join(job["run"], "checkpoints"), adversary)
    assert taken is not None, "the last step writes a checkpoint"
    best, extra = taken
    networks = adversary.average
    networks.load_state_dict({**adversary.averaged(), **best})
    return networks, extra | {"step": adversary.step_number}


def measure(model: models.Model, job: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Write into the model's description how it fares on these splits."""
    for part in parts:
        for key, found in assess.told(model, job, part).items():
            model.info.setdefault(key, {})[part] = found


def examine(model: models.Model, job: Mapping[str, Any], part: str, steps: int) -> None:
    """Write into the model's description what generator and explanations are worth."""
    keep_memory()
    model.info["generation"] = assess.generation(model, job, part, steps, say)
    model.info["explanation"] = assess.explained(model, job, say)


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _doubts(job: Mapping[str, Any], task: Task) -> list[str]:
    return task.doubts(split(job, task, "train"))


def _data(job: Mapping[str, Any]) -> dict[str, Any]:
    facts = job["description"]
    return {
        "uri": job["data"],
        "name": storage.name(facts["source"]),
        "sha256": identity_of(facts),
        "rows": {part: content["rows"] for part, content in facts["splits"].items()},
        "synthetic": facts.get("synthetic", False),
    }


def identity_of(facts: Mapping[str, Any]) -> str:
    """Identifies the rows, wherever they lie."""
    shards = {
        part: [shard["sha256"] for shard in content["shards"]]
        for part, content in facts["splits"].items()
    }
    text = json.dumps([facts["schema"], shards], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _opened(name: str) -> models.Model:
    return models.Model.open(registry.fetch(name))


def absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).absolute())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
