"""A sweep: many trainings of one task, those without hope stopped early, the best one kept.

Below HOME/runs/SWEEP each trial has a run folder, trials/01, and once it is done trials/01.json.
What a trial tries is drawn before the first begins, and all that a trial learns lies in its run
folder, so a sweep that was interrupted goes on when the same command runs again: the trials tell
the scheduler once more what they had told it, which decides the same, and train on from there.
Ray Tune's own memory (pickles, in SWEEP/ray) is never read, and deleted at the end.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.schedulers import ASHAScheduler

from aigc_ray import config, lease, storage
from aigc_ray.cluster import session
from aigc_ray.errors import UserError
from aigc_ray.space import APART, Space, Trials, drawn, searched
from aigc_ray.task import Task
from aigc_ray.train import absolute, claim, configure, finish, fit, identity_of, job_of
from aigc_ray.training import Training
from aigc_ray.worker import finite, work


def tune(
    task: str, data: str, changes: Mapping[str, Any] | None = None, *, fresh: bool = False
) -> dict[str, Any]:
    """Search settings with many trainings and register the best; the same call resumes.

    Args:
        data: where `ingest` put a data set.
        changes: settings of the training, which are then not searched; `trials` and `concurrent`
            (trials at a time); and what to search, `space.KEY`: "low..high", "a,b,c" or one value.
        fresh: start another sweep, even where one of this configuration is unfinished or done.

    Returns:
        What `train` returns of the best trial, with `objective`, `best_trial`, `trials`, `space`.

    Raises:
        UserError: settings, data or storage are wrong.
    """
    settings = dict(changes or {})
    count = _whole("trials", settings.pop("trials", 8))
    concurrent = _whole("concurrent", settings.pop("concurrent", 1))
    wanted = {
        key.removeprefix(APART): settings.pop(key)
        for key in list(settings)
        if key.startswith(APART)
    }
    data = absolute(data)
    training, facts = configure(task, data, settings)
    training, space = searched(training, settings, wanted)
    trials = drawn(training, space, count)
    record = {
        "task": task,
        "settings": config.to_json(training),
        "data": identity_of(facts),
        "trials": count,
        "space": space,
    }
    name, uri, finished = claim(f"{task}-sweep", record, fresh)
    if finished is not None:
        print(f"sweep {name} is already done; --fresh starts another", file=sys.stderr)
        return finished
    print(f"sweep {name}: {len(trials)} trials over {', '.join(space)}", file=sys.stderr)
    with lease.held(uri) as held:
        jobs = {
            number: job_of(one, facts, data, storage.join(uri, "trials", f"{number:02d}"))
            | {"concurrent": concurrent, "lease": held}
            for number, one in trials.items()
        }
        began = time.monotonic()
        failed = _search(jobs, trials, concurrent, storage.join(uri, "ray"))
        rows = [_row(jobs[n], n, trials[n], space, failed.get(n)) for n in trials]
        best = _best(rows, training.task)
        summary = finish(
            [jobs[best]],
            trials[best],
            name,
            time.monotonic() - began,
            uri=uri,
            search={"trials": len(trials), "best_trial": best},
            table=_table(rows, best, training.task.objective[0]),
        )
        summary |= {"objective": list(training.task.objective), "best_trial": best}
        summary |= {"trials": rows, "space": {key: list(spread) for key, spread in space.items()}}
        storage.write_json(storage.join(uri, "summary.json"), summary)
        for number, job in jobs.items():
            if number != best:
                storage.delete(storage.join(job["run"], "checkpoints"))
        storage.delete(storage.join(uri, "ray"))
    return summary


def _whole(key: str, value: Any) -> int:
    number: int = config.convert(key, int, value)
    if number < 1:
        raise UserError(f"{key} is 1 or more; got {number}")
    return number


# --- the trials ---------------------------------------------------------------------------------


def _search(
    jobs: dict[int, dict[str, Any]], trials: Trials, concurrent: int, uri: str
) -> dict[int, str]:
    """Run the trials, some at a time; which failed, and why."""
    training = trials[1]
    steps = sum(stage.steps for stage in training.task.stages())
    alone = training.num_workers == 0
    # Workers have resources of their own; Ray takes no trial without any.
    resources = {"cpu": 1.0, "gpu": float(training.gpu)} if alone else {"cpu": 0.01}
    watch = _Watch(len(jobs), steps, training.task)
    with _quiet(), session(cpus=concurrent * max(1, training.num_workers) + 2):
        ray.tune.Tuner(
            ray.tune.with_resources(
                ray.tune.with_parameters(_trial, jobs=jobs, trials=trials), resources
            ),
            param_space={"number": ray.tune.grid_search(list(jobs))},
            tune_config=ray.tune.TuneConfig(
                scheduler=_scheduler(training.task.objective[1], steps),
                max_concurrent_trials=concurrent,  # else trials starve each other's workers
            ),
            run_config=ray.tune.RunConfig(
                name=f"start-{time.time_ns():x}",
                storage_path=uri,
                # A trial's own workers are started again by `fit`.
                failure_config=ray.tune.FailureConfig(
                    max_failures=training.max_failures if alone else 0
                ),
                callbacks=[watch],
                verbose=0,
            ),
        ).fit()
    return watch.failed


def _scheduler(direction: str, steps: int) -> ASHAScheduler:
    """At a quarter and at half of the steps a trial goes on if it is in the better half so far.

    Successive halving, without waiting for the others (Li et al. 2020). What is compared is the
    best value so far, which is what a run keeps; so the best of all trials is never one that was
    stopped. With few trials a reduction of 2 rather than 4 lets a slow starter live.
    """
    grace = max(1, steps // 4)
    return ASHAScheduler(
        time_attr="step",
        metric="objective",
        mode=direction,
        grace_period=grace,
        reduction_factor=2,
        max_t=max(grace, steps - 1),  # whoever came to the end is not stopped there
        stop_last_trials=False,
    )


def _trial(given: dict[str, Any], jobs: dict[int, dict[str, Any]], trials: Trials) -> None:
    """One training, in a process of Ray Tune's."""
    job, training = jobs[given["number"]], trials[given["number"]]
    done = _done(job)
    for entry in _told(job["run"], training.task):
        ray.tune.report(entry | {"again": True})
    if storage.exists(done):
        return
    if training.num_workers == 0:
        work(job, ray.tune.report)
    else:
        from ray.tune.integration.ray_train import TuneReportCallback

        # Workers wait until a report is taken, and it is looked for so often (seconds).
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        fit(job, training, [TuneReportCallback()])
    storage.write_json(done, {"trial": given["number"], "settings": job["settings"]})


def _done(job: Mapping[str, Any]) -> str:
    """The file that says that a trial came to its end."""
    return f"{job['run']}.json"


def _told(uri: str, task: Task) -> Iterator[dict[str, Any]]:
    """A run's figures at each validation, with the best value of the objective until then."""
    where = storage.join(uri, "progress.json")
    history = storage.read_json(where)["history"] if storage.exists(where) else []
    best = None
    for entry in history:
        value = entry["validation"][task.objective[0]]
        if value is not None and (best is None or _sign(task) * value > _sign(task) * best):
            best = value
        yield entry | {"objective": math.nan if best is None else best}


def _sign(task: Task) -> int:
    return 1 if task.objective[1] == "max" else -1


class _Watch(ray.tune.Callback):  # type: ignore[misc]  # Ray is untyped
    """Says on stderr how the trials fare, and remembers which failed."""

    def __init__(self, count: int, steps: int, task: Task) -> None:
        self.count, self.steps, self.task = count, steps, task
        self.best: dict[int, float] = {}
        self.failed: dict[int, str] = {}
        self.over = 0

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number, value = trial.config["number"], result["objective"]
        self.best[number] = value
        if result.get("again"):
            return
        sign = _sign(self.task)
        leader = max(self.best, key=lambda n: -math.inf if n != n else sign * self.best[n])
        left = round(result["seconds_left"] or 0)
        self._say(
            number,
            f"step {result['step']}/{self.steps}, {result['rows_per_second']:.0f} rows/s, "
            f"{left // 60}:{left % 60:02d} left; best {self.task.objective[0]} {value:.4f}, "
            f"of all {self.best[leader]:.4f} (trial {leader})",
        )

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.over += 1
        self._say(trial.config["number"], f"over, as are {self.over} of {self.count}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        self.over += 1
        self.failed[number] = _reason(Path(trial.error_file).read_text())
        self._say(number, f"failed: {self.failed[number]}")

    def _say(self, number: int, text: str) -> None:
        print(f"trial {number}/{self.count}: {text}", file=sys.stderr, flush=True)


def _reason(text: str) -> str:
    """What went wrong last, out of what Ray wrote of a trial's failures."""
    lines = [line.strip() for line in text.split("Failure #")[-1].splitlines()[1:] if line.strip()]
    told = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit): ", line)]
    return (told or lines or ["its process ended"])[-1 if told else 0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Tune without its own output, files for other tools, and handling of Ctrl-C."""
    ours = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    ours["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one writes to stdout, whatever the verbosity
    before = {key: os.environ.get(key) for key in ours}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ |= ours
    logger.setLevel(logging.CRITICAL)  # what goes wrong is told once, by us
    try:
        yield
    finally:
        logger.setLevel(level)
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


# --- the end ------------------------------------------------------------------------------------


def _row(
    job: dict[str, Any], number: int, training: Training, space: Space, failed: str | None
) -> dict[str, Any]:
    """What became of a trial."""
    told = list(_told(job["run"], training.task))
    done = storage.exists(_done(job))
    row = {
        "trial": number,
        "settings": {key: config.settings(training)[key] for key in space},
        "objective": finite(told[-1]["objective"]) if told else None,
        "steps": told[-1]["step"] if told else 0,
        "state": "failed" if failed else "finished" if done else "stopped early",
    }
    return row | ({"reason": failed} if failed else {})


def _best(rows: list[dict[str, Any]], task: Task) -> int:
    """The finished trial with the best objective; of equals the first."""
    able = [row for row in rows if row["state"] == "finished" and row["objective"] is not None]
    if not able:
        reasons = [f"trial {row['trial']}: {row['reason']}" for row in rows if "reason" in row]
        raise RuntimeError(f"no trial came to its end; {reasons[0] if reasons else 'no objective'}")
    best: int = max(able, key=lambda row: (_sign(task) * row["objective"], -row["trial"]))["trial"]
    return best


def _table(rows: list[dict[str, Any]], best: int, objective: str) -> str:
    """The trials as HTML."""
    keys = list(rows[0]["settings"])
    names = ["trial", *(key.removeprefix("task.") for key in keys)]
    names += [f"validation {objective}", "steps", ""]
    lines = []
    for row in rows:
        values = [row["trial"], *(row["settings"][key] for key in keys), row["objective"]]
        cells = "".join(f"<td class='n'>{escape(_cell(value))}</td>" for value in values)
        note = "chosen" if row["trial"] == best else row.get("reason", row["state"])
        lines.append(f"<tr>{cells}<td class='n'>{row['steps']}</td><td>{escape(note)}</td></tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return f"<h2>Trials</h2><table><tr>{head}</tr>{''.join(lines)}</table>"


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
