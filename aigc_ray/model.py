"""What serving loads: a task with its schema, one or more members, and how it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc_ray import config, manifest, noise, storage
from aigc_ray.errors import UserError
from aigc_ray.judgement import Judgement
from aigc_ray.outliers import SPACES, Outliers
from aigc_ray.schema import Schema
from aigc_ray.task import Batch, Draw, Item, Networks, Record, Shortfall, Task, stack
from aigc_ray.tasks import task_class

WEIGHTS = "weights.safetensors"
MEMORY = "memory.safetensors"  # what networks without weights keep of training rows
REFERENCE = "reference.safetensors"  # what rows are compared with, to find the unusual ones
CHUNK = 64  # items that are answered at a time
REMEMBERS = "memory"  # the network that keeps training rows, in a task that has one


class Model:
    """A trained task, ready to recognise and to generate.

    Args:
        task: with the schema it was trained on.
        members: an ensemble; `recognise` averages over it, the first one generates.
        info: the contents of model.json.
        sha256: the hash that identifies the folder it was read from.
        judgement: what turns opinions into answers; None answers as the recogniser says.
        outliers: tells unusual rows.
    """

    def __init__(
        self,
        task: Task,
        members: Sequence[Networks],
        info: dict[str, Any],
        sha256: str = "",
        judgement: Judgement | None = None,
        outliers: Outliers | None = None,
    ) -> None:
        self.task, self.info, self.sha256 = task, info, sha256
        self.members = [member.eval().requires_grad_(False) for member in members]
        self.judgement, self.outliers = judgement, outliers

    @classmethod
    def open(cls, folder: Path) -> Model:
        """Read a model's folder after its hashes are checked.

        Raises:
            UserError: it is damaged, or was written by a version with other networks.
        """
        from safetensors.torch import load_file

        sealed = manifest.verify(folder)
        info = storage.read_json(str(folder / "model.json"))
        task = restore(info)
        weights = load_file(str(folder / WEIGHTS))
        memory = load_file(str(folder / MEMORY)) if (folder / MEMORY).exists() else {}
        members = []
        for number in range(info["members"]):
            networks = task.networks()
            prefix = f"{number}."
            own = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
            try:
                networks.load_state_dict(own | memory)
            except RuntimeError as fault:
                raise UserError(
                    f"{folder / WEIGHTS} does not fit the networks of this version of aigc_ray; "
                    f"open it with that which wrote it ({info['code_version']}), or train it anew"
                ) from fault
            members.append(networks)
        judgement, outliers = None, None
        if info.get("calibration") and task.schema.judged is not None:
            judgement = Judgement.from_json(info["calibration"])
        if (folder / REFERENCE).exists():
            outliers = Outliers.load(load_file(str(folder / REFERENCE)))
        return cls(task, members, info, manifest.sha256_of(sealed), judgement, outliers)

    @property
    def name(self) -> str:
        return self.task.name

    # --- tensors in, tensors out ------------------------------------------------------------

    @torch.inference_mode()
    def recognise(self, batch: Batch, *, everything: bool = False) -> dict[str, Tensor]:
        """The members' mean prediction, and where there are several their spread.

        With a judgement `probability` is what the opinions come to, calibrated; with outliers
        `outlier` (B,) says how unusual each row is.

        Args:
            everything: the opinions too that have no part in the answer.
        """
        unheard = set() if everything else {"critic", "beside"}
        if self.judgement is not None and self.judgement.share:
            unheard -= {"critic"}
        every = [self.task.recognise(_without(member, unheard), batch) for member in self.members]
        spaces = {name: every[0][name] for name in SPACES if name in every[0]}
        names = every[0].keys() - set(SPACES)
        together = {name: torch.stack([one[name] for one in every]) for name in names}
        mean = {name: value.mean(0) for name, value in together.items()}
        if self.judgement is not None:
            mean |= self._judged(self.judgement, mean)
        mean |= spaces
        if self.outliers is not None:
            mean["outlier"] = self.outliers.score([*spaces.values()])
        if len(every) > 1:
            mean |= {f"{name}_spread": value.std(0) for name, value in together.items()}
        return mean

    def _judged(self, judgement: Judgement, mean: dict[str, Tensor]) -> dict[str, Tensor]:
        recogniser = mean["probability"]
        critic = mean["critic"].numpy() if "critic" in mean else None
        answer = judgement.probability(recogniser.numpy(), critic)
        return {"probability": torch.from_numpy(answer).float(), "recogniser": recogniser}

    @torch.inference_mode()
    def draw(self, condition: Batch) -> Draw:
        return self.task.draw(self.members[0], condition)

    # --- requests in, answers out -----------------------------------------------------------

    def parse(self, item: Any) -> Record:
        """One item of a request: a mapping, or the path of a file."""
        if isinstance(item, (str, Path)):
            path = str(item)
            item = {"file": storage.read_bytes(path, limit=64 << 20), "filename": path}
        if not isinstance(item, Mapping):
            raise UserError(f"an item is an object with named fields or a path; got {item!r}")
        return self.task.parse(item)

    def answer(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """One answer a record, whatever its neighbours are, with the warnings that it came with."""
        groups: dict[tuple[str, ...], list[int]] = {}  # a field that is missing is so for its row
        for number, record in enumerate(records):
            groups.setdefault(tuple(self._fields(record)), []).append(number)
        answers: list[dict[str, Any]] = [{} for _ in records]
        for numbers in groups.values():
            row = noise.keys(0, torch.zeros(len(numbers)))  # the same, wherever in a request it is
            columns = stack([self._fields(records[number]) for number in numbers])
            predicted = self.recognise(self.task.encode(columns, row))
            arrays = {name: value.numpy() for name, value in predicted.items()}
            for place, number in enumerate(numbers):
                one = {name: value[place] for name, value in arrays.items()}
                answers[number] = self._answered(one, records[number])
        for answer, record in zip(answers, records, strict=True):
            variants: Mapping[str, Record] = record.get("variants") or {}
            answer |= zip(variants, self.answer([*variants.values()]), strict=True)
        return answers

    def _fields(self, record: Record) -> Record:
        """A record's values that are known, without what else came with it."""
        names = [field.name for field in self.task.schema.fields]
        return {name: record[name] for name in names if record.get(name) is not None}

    def _answered(self, prediction: Mapping[str, np.ndarray], record: Record) -> dict[str, Any]:
        """One row's answer; where it is withheld, what was likeliest is not said in its place."""
        answer = self.task.answer(prediction, record)
        if record.get("warnings"):
            answer["warnings"] = [*record["warnings"], *answer.get("warnings", ())]
        if self.judgement is None:
            return answer
        outlier = prediction.get("outlier")
        verdict = self.judgement.verdict(
            prediction["probability"], None if outlier is None else float(outlier)
        )
        if verdict["abstained"]:
            answer |= {name: None for name in ("label", "labels") if name in answer}
        elif self.judgement.several:
            answer["labels"] = [n for n in answer["labels"] if n not in verdict["undecided"]]
        return answer | verdict

    def explain(self, record: Record) -> dict[str, Any]:
        """What the answer hangs on: the task's own account of it, or a heat map of the likeliest
        class, or why there is none to be trusted.

        Returns:
            `method`, `of` (what is explained) and e.g. `image` (a PNG), or `withheld`, a sentence.
        """
        from aigc_ray import explanation

        own = self.task.explain(self, record)
        if own is not None:
            return own
        field, gate = self.task.schema.judged, self.info.get("explanation")
        if field is None or not explanation.possible(self.task):
            return {"withheld": f"{self.name} has no explanations"}
        if not gate or not gate["passes"]:
            why = "do not hang on what it learned" if gate else "were never tested"
            return {"withheld": f"this model's heat maps {why}"}
        batch = self.task.encode(stack([self._fields(record)]), noise.keys(0, torch.zeros(1)))
        target = self.recognise(batch)["probability"].argmax(1)
        heat = explanation.heat(self.task, self.members, batch, target)
        image = batch.value[explanation.image_of(self.task)][0]
        return {
            "method": gate["method"],
            "of": field.values[int(target)],
            "image": explanation.overlay(image, heat[0]),
        }

    def predict(self, items: Iterable[Any]) -> list[dict[str, Any]]:
        """Answers for paths or items, in their order. A bad one is refused by its number."""
        records = []
        for number, item in enumerate(items):
            try:
                records.append(self.parse(item))
            except UserError as fault:
                raise UserError(f"item {number}: {fault}") from None
        chunks = [records[start : start + CHUNK] for start in range(0, len(records), CHUNK)]
        return [answer for part in _side_by_side(self.answer, chunks) for answer in part]

    def generate(self, **request: Any) -> list[Item | Shortfall]:
        """Samples as the task's request form asks for them, e.g. generate(n=8, seed=1)."""
        return list(self.task.generate(self, request))


def restore(info: Mapping[str, Any]) -> Task:
    """The task, configured and with its schema, from a model's or a checkpoint's description."""
    task = task_class(info["task"])(schema=Schema.from_json(info["schema"]))
    return config.override(task, info["configuration"])


def _side_by_side(work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
    """`work` of each part. Where there are several, cores take one each: the products of a small
    network are too short for several cores to share."""
    cores = torch.get_num_threads()
    if min(cores, len(parts)) < 2:
        return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(cores)  # of threads to come


def _without(member: Networks, unheard: set[str]) -> Networks:
    """The networks but for those that nobody listens to, each of which costs as much as another."""
    return Networks({name: network for name, network in member.items() if name not in unheard})


def write(
    folder: Path,
    members: Sequence[Mapping[str, Tensor]],
    info: dict[str, Any],
    outliers: Outliers | None = None,
) -> None:
    """A model's folder, before the registry adds the card and seals it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{number}.{name}": tensor.contiguous()
        for number, member in enumerate(members)
        for name, tensor in member.items()
        if not name.startswith(f"{REMEMBERS}.")
    }
    save_file(tensors, str(folder / WEIGHTS))
    memory = {k: v.contiguous() for k, v in members[0].items() if k.startswith(f"{REMEMBERS}.")}
    if memory:  # all members were trained on the same rows
        save_file(memory, str(folder / MEMORY))
    if outliers is not None:
        save_file(outliers.state(), str(folder / REFERENCE))
    storage.write_json(str(folder / "model.json"), info | {"members": len(members)})
