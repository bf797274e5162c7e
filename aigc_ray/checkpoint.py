"""Checkpoints of a run: written whole or not at all, taken up bit for bit.

A checkpoint is a folder of safetensors and JSON whose manifest is written last; one without a valid
manifest does not count, so a crash while saving costs only that checkpoint.
"""

from __future__ import annotations

import logging
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_ray import manifest, storage
from aigc_ray.adversary import Adversary
from aigc_ray.errors import UserError

KEEP = 2  # the newest, and one more in case the newest is damaged


def save(uri: str, adversary: Adversary, best: dict[str, Tensor], extra: dict[str, Any]) -> str:
    """Write a checkpoint below `uri` and remove older ones.

    Args:
        best: the averaged weights of the networks that the objective chooses, at their best.
        extra: plain values of the caller's that belong to this moment.

    Raises:
        OSError: the disk is full; earlier checkpoints are untouched.
    """
    from safetensors.torch import save_file

    tensors, plain = adversary.state()
    # The same step can be saved twice, before and after a crash, so the name holds more than it.
    name = f"{adversary.step_number:09d}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="aigc-") as temporary:
        folder = Path(temporary)
        save_file(_whole(tensors), str(folder / "training.safetensors"))
        save_file(_whole(adversary.averaged()), str(folder / "weights.safetensors"))
        save_file(_whole(best), str(folder / "best.safetensors"))
        storage.write_json(str(folder / "state.json"), {"adversary": plain, "extra": extra})
        manifest.seal(folder)
        try:
            storage.upload(folder, storage.join(uri, name))
        except OSError:
            storage.delete(storage.join(uri, name))
            raise
    for old in _names(uri)[KEEP:]:
        storage.delete(storage.join(uri, old))
    return storage.join(uri, name)


def load(
    uri: str, adversary: Adversary, device: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Take up the newest whole checkpoint below `uri`; a damaged one is passed over and said so.

    Returns:
        `best` and `extra` as they were saved, or None where there is no checkpoint.

    Raises:
        UserError: there are checkpoints and every one is damaged.
    """
    faults = []
    for name in _names(uri):
        with tempfile.TemporaryDirectory(prefix="aigc-") as temporary:
            folder = Path(temporary)
            storage.download(storage.join(uri, name), folder)
            try:
                manifest.verify(folder)
            except UserError as fault:
                faults.append(str(fault))
                logging.getLogger(__name__).warning("checkpoint passed over: %s", fault)
                continue
            tensors, averaged, best = (
                _read(folder / f"{part}.safetensors", device)
                for part in ("training", "weights", "best")
            )
            state = storage.read_json(str(folder / "state.json"))
            adversary.load(tensors, averaged, state["adversary"])
            return best, state["extra"]
    if faults:
        raise UserError(f"no whole checkpoint is left in {uri}: {faults[0]}; start with --fresh")
    return None


def _names(uri: str) -> list[str]:
    """The checkpoints that were finished, newest first."""
    return [
        name
        for name in sorted(storage.children(uri), reverse=True)
        if storage.exists(storage.join(uri, name, "MANIFEST.json"))
    ]


def _whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: tensor.to(torch.device(device)) for name, tensor in load_file(str(path)).items()}
