"""The tasks by name; a sixth is one folder and one line here."""

from __future__ import annotations

import importlib

from aigc_ray.errors import UserError
from aigc_ray.task import Task

TASKS = {
    "diagnosis": "aigc_ray.tasks.diagnosis.task:Diagnosis",
    "dna": "aigc_ray.tasks.dna.task:Dna",
    "molecules": "aigc_ray.tasks.molecules.task:Molecules",
    "prognosis": "aigc_ray.tasks.prognosis.task:Prognosis",
    "proteins": "aigc_ray.tasks.proteins.task:Proteins",
}


def task_class(name: str) -> type[Task]:
    """The class of the task with this name, imported when it is asked for."""
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}; tasks are {', '.join(TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    found: type[Task] = getattr(importlib.import_module(module), attribute)
    return found
