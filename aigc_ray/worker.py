"""One worker of a training: the loop over its share of the rows, and what it leaves behind."""

from __future__ import annotations

import copy
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc_ray import checkpoint, config, fidelity, lease, noise, registry, rows, storage
from aigc_ray import model as models
from aigc_ray.adversary import HELD_BACK_EVERY, Adversary
from aigc_ray.cluster import cpus
from aigc_ray.errors import UserError
from aigc_ray.splitter import halves, named
from aigc_ray.task import Batch, Task
from aigc_ray.training import Training

MEMORY_LIMIT = 2 << 30  # bytes of a training split that a worker holds; a larger one is streamed
VALIDATION_ROWS = 5000  # looked at during training, at most; the last word has all of them
SHOW_EVERY = 2.0  # seconds between two progress lines
DRAW_EVERY = 5.0  # seconds between two pictures of what is generated


Report = Callable[[dict[str, Any]], None]


def work(job: dict[str, Any], report: Report | None = None) -> None:
    """The train function of one worker.

    Args:
        report: told the figures after each validation. Workers of a sweep tell Ray Train, which
            tells the scheduler; by themselves they do not, since each report waits until Ray looks
            for it, every other second.
    """
    began = time.monotonic()
    share, device = _place(job["settings"]["gpu"])
    beside = share.workers * job.get("concurrent", 1)  # trials of a sweep share the machine too
    # Ray sets OMP_NUM_THREADS by itself, to the one core that it thinks a worker needs; without Ray
    # it is the user's wish: threads that wait for one another crawl where others use the cores.
    if job["settings"]["num_workers"] or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cpus() // beside))
    task = models.restore(description(job))
    training = config.override(Training(task=task), job["settings"])
    task = training.task
    adversary = Adversary(task, seed=training.seed, device=device)
    best: dict[str, Tensor] = {}
    extra: dict[str, Any] = {"best": None, "history": [], "seconds": 0.0}
    taken = checkpoint.load(storage.join(job["run"], "checkpoints"), adversary, device)
    if taken is not None:
        best, extra = taken
    extra["machine"] = _machine(device)
    feed = _feed(job, training, "train")
    if taken is None:
        adversary.prepare(_epoch(job, training, feed))
        if training.init:
            _fine_tune(adversary, training.init)
    if report is None and training.num_workers and "concurrent" in job:
        import ray.train

        report = ray.train.report
    recorder = _Recorder(job, training, adversary, best, extra, share, report, began)
    held_back = _feed(job, training, "val")
    batches = feed.batches(adversary.step_number, share)
    looks = held_back.batches(-(-adversary.step_number // HELD_BACK_EVERY), share)
    ready: Iterator[Batch] = (_batch(task, training.seed, taken, device) for taken in batches)
    if device != "cpu":
        ready = _ahead(ready)  # whose CPU would be idle while the GPU computes
    while not adversary.finished:
        real = next(ready)
        look = None
        if adversary.step_number % HELD_BACK_EVERY == 0:
            look = _batch(task, training.seed + 1, next(looks), device)
        figures = adversary.step(real, look)
        recorder.after(figures)


def _fine_tune(adversary: Adversary, start: str) -> None:
    model = models.Model.open(registry.fetch(start))
    (member, *_) = model.members
    if (model.info.get("generated_rows") or {}).get("heard"):
        # Its recogniser learned from generated rows too; the one of real rows stays that here.
        member["recogniser"] = member["beside"]
    try:
        adversary.start_from(member)
    except RuntimeError as error:
        raise UserError(
            f"init={start}: its networks have another form than these settings ask for; leave out "
            f"what changes them, as task.width does ({str(error).splitlines()[0]})"
        ) from None


def _place(gpu: bool) -> tuple[rows.Share, str]:
    import torch.distributed as dist

    share = rows.Share()
    if dist.is_initialized():
        share = rows.Share(dist.get_rank(), dist.get_world_size())
    if not gpu:
        return share, "cpu"
    if not dist.is_initialized():
        return share, "cuda"
    from ray.train.torch import get_device

    return share, str(get_device())


def _machine(device: str) -> str:
    """What a worker computes on, in words."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def _batch(task: Task, seed: int, taken: tuple[np.ndarray, rows.Rows], device: str) -> Batch:
    number, columns = taken
    return task.encode(columns, noise.keys(seed, torch.from_numpy(number))).to(device)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same, each made while the one before it is in use."""
    with ThreadPoolExecutor(1, "batches") as maker:
        following = maker.submit(next, batches)
        while True:
            batch = following.result()
            following = maker.submit(next, batches)
            yield batch


def _epoch(job: dict[str, Any], training: Training, feed: rows.Feed) -> Iterator[Batch]:
    """The training rows in their order, once."""
    left = job["description"]["splits"]["train"]["rows"]
    for taken in feed.batches(0, rows.Share()):
        batch = _batch(training.task, training.seed, taken, "cpu")
        yield batch.take(torch.arange(min(left, len(batch.row))))
        left -= len(batch.row)
        if left <= 0:
            return


def _feed(job: dict[str, Any], training: Training, split: str) -> rows.Feed:
    description, uri = job["description"], job["data"]
    columns = [field.name for field in training.task.schema.fields]
    size = sum(shard["bytes"] for shard in description["splits"][split]["shards"])
    if training.data == "stream" or (training.data == "auto" and size > MEMORY_LIMIT):
        return rows.Stream(
            uri,
            rows.groups(uri, description, split),
            columns=columns,
            batch_size=training.batch_size,
            seed=training.seed,
        )
    return rows.Memory(
        rows.load(uri, description, split, columns),
        batch_size=training.batch_size,
        seed=training.seed,
    )


class _Recorder:
    """What a run leaves behind as it goes: figures, samples, checkpoints, the best weights."""

    def __init__(
        self,
        job: dict[str, Any],
        training: Training,
        adversary: Adversary,
        best: dict[str, Tensor],
        extra: dict[str, Any],
        share: rows.Share,
        report: Report | None,
        began: float,
    ) -> None:
        self.job, self.training, self.adversary = job, training, adversary
        self.best, self.extra, self.share, self.report = best, extra, share, report
        self.validation = None
        if not share.rank:
            chosen = _choosing(job, training.task)
            self.validation = [batch.to(adversary.device) for batch in chosen]
        self.began = self.saved = self.shown = time.monotonic()
        self.before = extra["seconds"] + self.began - began  # of earlier starts, and to get here
        self.drawn = self.began
        self.seen: dict[str, float] = {}  # figures of the last validation
        self.first = adversary.step_number
        self.aside = 0.0  # seconds spent on validation and checkpoints
        self.figures: dict[str, list[Tensor]] = {}  # since the last validation
        self.teller = ThreadPoolExecutor(1, "progress")
        self.told: Future[None] | None = None

    def after(self, figures: dict[str, Tensor]) -> None:
        """Called after every step, on every worker."""
        training, adversary = self.training, self.adversary
        step = adversary.step_number
        every = training.validate_every or max(1, adversary.stage_at(step - 1)[0].steps // 20)
        validate = step % every == 0 or adversary.finished or adversary.between
        if self.share.rank == 0:
            for name, value in figures.items():
                self.figures.setdefault(name, []).append(value.detach())
            before = time.monotonic()
            metrics = self._validate() if validate else None
            self.aside += time.monotonic() - before
            if metrics or before - self.shown > SHOW_EVERY or step == self.first + 1:
                self._show(metrics)
        if adversary.between:
            adversary.go_back(self.best)
            self.seen = {}
        if self.share.rank == 0:
            before = time.monotonic()
            due = before - self.saved > training.checkpoint_seconds
            if due or step % training.checkpoint_every == 0 or adversary.finished:
                self._save()
                self.aside += time.monotonic() - before
        if validate and self.report is not None:
            told: dict[str, Any] = {"step": step}
            if self.share.rank == 0:  # the others tell only that they have come so far
                told |= self.extra["history"][-1] | {"objective": self.extra["best"]["value"]}
            self.report(told)

    def _validate(self) -> dict[str, float]:
        task, adversary = self.training.task, self.adversary
        assert self.validation is not None
        model = models.Model(task, [adversary.average], {})
        stage, _ = adversary.stage_at(adversary.step_number - 1)
        if not self.seen or any(player.network in task.chosen for player in stage.players):
            self.seen = task.glance(*fidelity.collected(model, self.validation))
        metrics = self.seen  # else of networks that stand still
        always = not stage.chooses  # what such a stage is worth the objective does not tell
        now = self._moment(task.objective, metrics)
        if always or _beats(now, self.extra["best"]):
            self.extra["best"] = now
        moments, playing = self.extra.setdefault("moments", {}), {p.network for p in stage.players}
        for network, measure in task.moments().items():
            if network in moments and network not in playing:
                continue  # it stands still
            now = self._moment(measure, metrics)
            if (always and network in task.chosen) or _beats(now, moments.get(network)):
                moments[network] = now
                self.best |= {
                    key: tensor.clone()
                    for key, tensor in adversary.averaged().items()
                    if key.startswith(f"{network}.")
                }
        if adversary.finished or time.monotonic() - self.drawn > DRAW_EVERY:
            picture = f"step-{adversary.step_number:07d}.png"
            where = storage.join(self.job["run"], "samples", picture)
            still = copy.deepcopy(adversary.average).to("cpu")
            storage.write_bytes(where, task.sample(models.Model(task, [still], {})))
            self.drawn = time.monotonic()
        return metrics

    def _moment(self, measure: tuple[str, str], metrics: dict[str, float]) -> dict[str, Any]:
        name, direction = measure
        score = finite(metrics[name] if direction == "max" else -metrics[name])
        return {
            "step": self.adversary.step_number, "score": score, "value": finite(metrics[name])
        }  # fmt: skip

    def _show(self, metrics: dict[str, float] | None) -> None:
        adversary, now = self.adversary, time.monotonic()
        done = adversary.step_number - self.first
        rate = done * self.training.batch_size / max(now - self.began, 1e-9)
        left = (
            (adversary.steps - adversary.step_number) * self.training.batch_size / max(rate, 1e-9)
        )
        entry: dict[str, Any] = {
            name: float(torch.stack(values).float().mean()) for name, values in self.figures.items()
        }
        entry |= {"step": adversary.step_number, "strength": adversary.strength}
        entry |= {"rows_per_second": rate, "seconds_left": left}
        entry |= {"elapsed": now - self.began, "aside": self.aside}
        if metrics is not None:
            entry["validation"] = metrics
            self.extra["history"].append({k: finite(v) for k, v in entry.items()})
            self.figures = {}
        self.shown = now
        state = {"steps": adversary.steps, "now": {k: finite(v) for k, v in entry.items()}}
        self._tell(state | {"history": [*self.extra["history"]]}, wait=metrics is not None)

    def _tell(self, state: dict[str, Any], *, wait: bool) -> None:
        """Write the progress beside the steps: the store may take its time, and all workers would
        wait for this one. What comes too soon after the last is left out, unless it must not be."""
        if self.told is not None:
            if not (self.told.done() or wait):
                return
            self.told.result()  # a store that fails ends the run
        where = storage.join(self.job["run"], "progress.json")
        self.told = self.teller.submit(storage.write_json, where, state)
        if wait:
            self.told.result()

    def _save(self) -> None:
        lease.check(self.job["lease"])
        self.saved = time.monotonic()
        self.extra["seconds"] = self.before + self.saved - self.began
        checkpoint.save(
            storage.join(self.job["run"], "checkpoints"), self.adversary, self.best, self.extra
        )


def _beats(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
    """A metric that does not exist (AUC where one class is missing) is worse than any."""
    if before is None:
        return True
    return now["score"] is not None and (
        before["score"] is None or bool(now["score"] > before["score"])
    )


def _choosing(job: Mapping[str, Any], task: Task) -> list[Batch]:
    """The held-back rows by which the best moment is chosen: half of them, if the other half is
    needed for a judgement, else all."""
    if task.schema.judged is None:
        return list(split(job, task, "val", VALIDATION_ROWS))
    found = list(split(job, task, "val", VALIDATION_ROWS, half=True))
    if not found or next(split(job, task, "val", half=False), None) is None:
        raise UserError(
            f"{job['data']} has too few patients (or rows) in its validation split: half of them "
            "choose, and half are needed to say how far the answers can be trusted"
        )
    return found


def split(
    job: Mapping[str, Any],
    task: Task,
    name: str,
    most: int | None = None,
    *,
    half: bool | None = None,
) -> Iterator[Batch]:
    """A split's rows as batches, in order; of both halves, or of one (`splitter.halves`).

    Args:
        most: so many rows at most, from all over the split.
    """
    uri, description = job["data"], job["description"]
    fields = [field.name for field in task.schema.fields]
    for numbers, columns in rows.sampled(uri, description, name, [*fields, "patient"], most):
        people = columns.pop("patient")
        batch = task.encode(columns, noise.keys(0, torch.from_numpy(numbers)))
        if half is not None:
            chosen = halves(named(people, numbers.tolist())) == half
            batch = batch.take(torch.from_numpy(chosen))
        if len(batch.row):
            yield batch


def description(job: Mapping[str, Any]) -> dict[str, Any]:
    """The task of a job, as model.json describes it."""
    prefix = "task."
    settings = job["settings"].items()
    own = {k[len(prefix) :]: v for k, v in settings if k.startswith(prefix)}
    return {"task": job["task"], "schema": job["schema"], "configuration": own}


def finite(value: Any) -> Any:
    """JSON has no NaN: a metric that does not exist is null."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    return value if not isinstance(value, float) or np.isfinite(value) else None
