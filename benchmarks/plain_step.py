"""The straightforward PyTorch step of the default losses, and its improvements one by one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from aigc_ray import noise, rows
from aigc_ray.adversary import Adversary
from aigc_ray.task import Batch, Draw, Networks, Step
from aigc_ray.tasks.diagnosis.task import Diagnosis


@dataclass(frozen=True)
class Plain:
    """What a first version does not do yet."""

    one_draw: bool = False  # generate once a step, not once for each player
    channels_last: bool = False  # in weights and in every derivative
    fused: bool = False  # AdamW in one kernel
    bf16: bool = False
    penalty_every: int | None = None  # steps; None: as the task has it


LADDER = (
    ("straightforward, penalties at every step", Plain(penalty_every=1)),
    ("straightforward", Plain()),
    ("one draw for both players", Plain(one_draw=True)),
    ("channels last", Plain(one_draw=True, channels_last=True)),
    ("fused optimiser", Plain(one_draw=True, channels_last=True, fused=True)),
    ("bfloat16", Plain(one_draw=True, channels_last=True, fused=True, bf16=True)),
)


def contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)


class PlainStep:
    """A step by hand with the task's own networks and losses."""

    def __init__(self, task: Diagnosis, how: Plain) -> None:
        self.how = how
        self.task = replace(
            task,
            precision="bf16" if how.bf16 else "fp32",
            penalty_every=how.penalty_every or task.penalty_every,
        )
        self.number = 0
        start = Adversary(self.task, seed=0)
        self.networks: Networks = start.networks
        if not how.channels_last:
            for parameter in self.networks.parameters():
                parameter.data = parameter.data.contiguous()
            for module in self.networks.modules():
                if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                    module.register_forward_pre_hook(contiguous)
        self.average = copy.deepcopy(self.networks).requires_grad_(False)
        self.optimizers = {
            player.network: torch.optim.AdamW(
                self.networks[player.network].parameters(),
                lr=player.optimizer.learning_rate,
                betas=player.optimizer.betas,
                eps=player.optimizer.epsilon,
                fused=how.fused,
                foreach=False if not how.fused else None,
            )
            for player in self.task.stages()[0].players
        }

    def step(self, real: Batch, strength: float) -> None:
        turn = Step(_mean, self.number, 0.0, strength, lambda name, value: None)
        self.number += 1
        with torch.set_grad_enabled(self.how.one_draw):
            draw = self.task.draw(self._only("generator"), real)
        detached = Draw({k: v.detach() for k, v in draw.value.items()}, None)
        self._learn("critic", self.task._critic_loss(self._only("critic"), real, detached, turn))
        recogniser = self._only("recogniser")
        self._learn("recogniser", self.task._recogniser_loss(recogniser, real, None, turn))
        networks = self._only("generator")
        if not self.how.one_draw:
            draw = self.task.draw(networks, real)
        self._learn("generator", self.task._generator_loss(networks, real, draw, turn))
        for average, network in zip(
            self.average.parameters(), self.networks.parameters(), strict=True
        ):
            average.lerp_(network.detach(), 0.01)

    def _only(self, name: str) -> Networks:
        for other, network in self.networks.items():
            network.requires_grad_(other == name)
        return self.networks

    def _learn(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    return (value * weight).sum() / weight.sum()


def batches(task: Diagnosis, columns: rows.Rows, size: int, count: int) -> list[Batch]:
    """`count` batches of rows in order."""
    made = []
    for number in range(count):
        part = slice(number * size, (number + 1) * size)
        taken = {name: column[part] for name, column in columns.items()}
        made.append(task.encode(taken, noise.keys(0, torch.arange(size) + number * size)))
    return made
