"""The loop: stages of players taking turns, exact for any number of workers.

It knows no modality and no Ray. A task gives it networks and stages; it draws samples, lowers each
player's loss, sums gradients over the workers, keeps averaged weights, and can be put down and
taken up again bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aigc_ray.task import Batch, Draw, Networks, Player, Stage, Step, Task

HELD_BACK_EVERY = 16  # steps between two looks at held-back rows
MAX_SKIPPED = 50  # steps in a row with a gradient that is not finite


class Adversary:
    """The state of one training: networks, averages, optimisers, step.

    Args:
        task: what to learn.
        seed: every worker starts from the same weights.
        device: where this worker's networks live.
        stages: instead of the task's.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        device: str = "cpu",
        stages: tuple[Stage, ...] | None = None,
    ) -> None:
        torch.manual_seed(seed)  # every worker starts from the same weights
        self.task, self.device = task, device
        self.networks: Networks = task.networks().to(device)
        for parameter in self.networks.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.average: Networks = copy.deepcopy(self.networks).requires_grad_(False).eval()
        self.stages = task.stages() if stages is None else stages
        self.steps = sum(stage.steps for stage in self.stages)
        self.step_number = 0
        self.strength = 0.0
        self.skipped = 0  # in a row
        self.pool: list[Draw] = []
        self._stage: Stage | None = None
        self._optimizers: dict[str, torch.optim.AdamW] = {}
        self._enter(self.stage_at(0))

    # --- where we are -----------------------------------------------------------------------

    def stage_at(self, step: int) -> tuple[Stage, float]:
        """The stage that step `step` belongs to, and the share of it that is done."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step / stage.steps
            step -= stage.steps
        return self.stages[-1], 1.0

    @property
    def finished(self) -> bool:
        return self.step_number >= self.steps

    @property
    def between(self) -> bool:
        """Whether one stage is over and another one begins."""
        return not self.finished and 0 == self.stage_at(self.step_number)[1] < self.step_number

    def _enter(self, where: tuple[Stage, float]) -> None:
        stage, progress = where
        if stage is not self._stage:
            self._stage, self.pool = stage, []
            self._optimizers = {
                player.network: torch.optim.AdamW(
                    self.networks[player.network].parameters(),
                    lr=player.optimizer.learning_rate,
                    betas=player.optimizer.betas,
                    weight_decay=player.optimizer.weight_decay,
                    eps=player.optimizer.epsilon,
                    fused=True,
                )
                for player in stage.players
            }
        for player in stage.players:
            final = player.optimizer.final
            cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
            done, rising = (part * stage.steps for part in (progress, player.optimizer.warm_up))
            rise = min(1.0, (done + 1) / (rising + 1))
            for group in self._optimizers[player.network].param_groups:
                group["lr"] = player.optimizer.learning_rate * cosine * rise

    # --- one step ---------------------------------------------------------------------------

    def step(self, real: Batch, held_back: Batch | None = None) -> dict[str, Tensor]:
        """One update of every player; `held_back` rows steer the augmentation where a task asks.

        Returns:
            Each player's loss and whatever the losses logged, as means over all workers.

        Raises:
            FloatingPointError: gradients stayed not finite for `MAX_SKIPPED` steps.
        """
        stage, progress = self.stage_at(self.step_number)
        means = Means(real.weight)
        figures: dict[str, Tensor] = {}
        turn = Step(means, self.step_number, progress, self.strength, figures.__setitem__)
        draw = self._draw(stage, real)
        finite = True
        for player in stage.players:
            if not self._joined(stage, progress, player):
                continue
            learns = player.network == "generator"
            loss = self._loss(
                player, real, draw if learns or draw is None else _detached(draw), turn
            )
            figures[player.network] = loss.detach()
            finite &= self._update(player.network, loss)
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped >= MAX_SKIPPED:
            raise FloatingPointError(
                f"gradients were not finite for {MAX_SKIPPED} steps in a row; "
                "lower the learning rate or raise the penalty"
            )
        if stage.overfitting is not None and held_back is not None and draw is not None:
            with torch.no_grad():
                signal = stage.overfitting(self.networks, real, held_back, _detached(draw), turn)
            # From 0 to 1 within half the stage at the soonest (Karras et al. 2020 take 500,000
            # images; the budgets here are often smaller than that).
            rise = 2 * HELD_BACK_EVERY / stage.steps
            self.strength = min(max(self.strength + math.copysign(rise, float(signal) - 0.5), 0), 1)
            figures["overfitting"] = signal
        self._follow(stage)
        self.step_number += 1
        self._enter(self.stage_at(self.step_number))
        return figures

    def _joined(self, stage: Stage, progress: float, player: Player) -> bool:
        """Whether a player takes its turn; at its first, it becomes a copy of where it starts."""
        done, first = round(progress * stage.steps), math.ceil(player.joins * stage.steps)
        if done == first and player.starts_as is not None:
            for networks in (self.networks, self.average):
                networks[player.network].load_state_dict(networks[player.starts_as].state_dict())
        return done >= first

    def _draw(self, stage: Stage, real: Batch) -> Draw | None:
        if "generator" not in self.networks or stage.refresh == 0:
            return None
        if stage.refresh == 1:
            learns = any(player.network == "generator" for player in stage.players)
            self.networks["generator"].requires_grad_(learns)
            with torch.set_grad_enabled(learns):
                return self.task.draw(self.networks, real)
        if not self.pool:  # drawn under this batch's conditions, with fresh noise for each step
            with torch.no_grad():
                self.pool = [
                    self.task.draw(self.networks, real._replace(row=real.row + number))
                    for number in range(stage.refresh)
                ]
        return self.pool.pop()

    def _loss(self, player: Player, real: Batch, draw: Draw | None, turn: Step) -> Tensor:
        for name, network in self.networks.items():
            network.requires_grad_(name == player.network)
        return player.loss(self.networks, real, draw, turn)

    def _update(self, name: str, loss: Tensor) -> bool:
        """Sum the gradients over the workers in one flat all-reduce and step, if all are finite.

        Averaged by hand: with static_graph=True DistributedDataParallel leaves the penalty's
        gradients local. Running statistics ride along, so that they too are equal everywhere.
        """
        network, optimizer = self.networks[name], self._optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = list(network.parameters())
        for parameter in parameters:
            if parameter.grad is None:  # a head unused in this stage still takes part
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if _world() > 1:
            # Other buffers are constants, which the graph of a draw may hold.
            buffers = [b for name, b in network.named_buffers() if ".running_" in f".{name}"]
            if buffers:
                torch._foreach_div_(buffers, float(_world()))
            shared = gradients + buffers
            flat = torch.cat([tensor.reshape(-1) for tensor in shared])
            dist.all_reduce(flat)
            pieces = flat.split([tensor.numel() for tensor in shared])
            for tensor, piece in zip(shared, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))
        norm = torch.stack(torch._foreach_norm(gradients)).sum()
        if not torch.isfinite(norm):  # the sum is the same on all workers, and so is the vote
            return False
        optimizer.step()
        return True

    @torch.no_grad()
    def _follow(self, stage: Stage) -> None:
        """Move the averaged weights: a half-life of 5 % of the images seen, capped at the budget's
        twentieth (after the ramp of Karras et al. 2020)."""
        half_life = max(0.05 * (self.step_number + 1), 1.0)  # steps
        share = 1 - 0.5 ** (1 / half_life)
        for name in {player.network for player in stage.players}:  # the others stand still
            old, new = self.average[name].state_dict(), self.networks[name].state_dict()
            moving = [key for key, tensor in old.items() if tensor.is_floating_point()]
            torch._foreach_lerp_([old[key] for key in moving], [new[key] for key in moving], share)
            for key in old.keys() - moving:
                old[key].copy_(new[key])

    # --- put down and taken up --------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a later `load` needs to go on bit for bit: tensors, and plain values."""
        tensors = {f"network.{key}": value for key, value in self.networks.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            for number, entry in optimizer.state_dict()["state"].items():
                for key, value in entry.items():
                    tensors[f"optimizer.{name}.{number}.{key}"] = value
        for number, draw in enumerate(self.pool):
            for key, value in draw.value.items():
                tensors[f"pool.{number}.{key}"] = value
            for key, known in draw.known.items():
                tensors[f"known.{number}.{key}"] = known
            if draw.log_probability is not None:
                tensors[f"pool.{number}"] = draw.log_probability
        plain = {
            "step": self.step_number,
            "strength": self.strength,
            "skipped": self.skipped,
            "pool": len(self.pool),
        }
        return tensors, plain

    def prepare(self, rows: Iterator[Batch]) -> None:
        """Let the task look at training rows before the first step: one worker, for all of them,
        on its CPU, where the rows are."""
        with torch.no_grad():
            if _world() == 1 or dist.get_rank() == 0:
                self.networks.to("cpu")
                self.task.prepare(self.networks, rows)
                self.networks.to(self.device)
            if _world() > 1:
                for tensor in self.networks.state_dict().values():
                    dist.broadcast(tensor, 0)
        self.average.load_state_dict(self.networks.state_dict())

    @torch.no_grad()
    def go_back(self, best: dict[str, Tensor]) -> None:
        """Go on with averaged weights of an earlier moment, which the first worker has, in the
        networks for which one is chosen."""
        for name in self.task.moments():
            weights = self.average[name].state_dict()
            if own := _under(best, f"{name}."):
                self.average[name].load_state_dict(own)
            if _world() > 1:
                for tensor in weights.values():
                    dist.broadcast(tensor, 0)
            self.networks[name].load_state_dict(weights)

    def start_from(self, member: Networks) -> None:
        """Begin with a model's weights, to fine-tune it; networks that it lacks stay fresh.

        Raises:
            RuntimeError: a network has another form than here.
        """
        with torch.no_grad():
            for networks in (self.networks, self.average):
                self.task.inherit(networks, member)

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, which serving reads."""
        return dict(self.average.state_dict())

    def load(
        self, tensors: dict[str, Tensor], averaged: dict[str, Tensor], plain: dict[str, Any]
    ) -> None:
        """Take up where `state` and `averaged` were taken."""
        self.step_number, self.strength = plain["step"], plain["strength"]
        self.skipped = plain["skipped"]
        self._enter(self.stage_at(self.step_number))
        self.networks.load_state_dict(_under(tensors, "network."))
        self.average.load_state_dict(averaged)
        for name, optimizer in self._optimizers.items():
            parameters = list(self.networks[name].parameters())
            entries: dict[int, dict[str, Tensor]] = {}
            for key, value in _under(tensors, f"optimizer.{name}.").items():
                number, _, field = key.partition(".")
                if value.dim():
                    # In the layout of its parameter: the fused step walks both by address.
                    value = torch.empty_like(parameters[int(number)]).copy_(value)
                entries.setdefault(int(number), {})[field] = value
            state = optimizer.state_dict()
            optimizer.load_state_dict({**state, "state": entries})
        self.pool = [
            Draw(
                _under(tensors, f"pool.{number}."),
                tensors.get(f"pool.{number}"),
                _under(tensors, f"known.{number}."),
            )
            for number in range(plain["pool"])
        ]


class Means:
    """Means over the rows of all workers, whose gradient stays this worker's own share.

    Summed over the workers, the gradients of any function of such means are those of one worker
    that holds all rows.
    """

    def __init__(self, weight: Tensor) -> None:
        self._totals: dict[int, tuple[Tensor, Tensor]] = {}
        self.total(weight)

    def total(self, weight: Tensor) -> Tensor:
        known = self._totals.get(id(weight))
        if known is None:
            total = weight.detach().sum()
            if _world() > 1:
                dist.all_reduce(total)
            # The weight is kept beside its total, so that its id is not given to another tensor.
            known = self._totals[id(weight)] = (weight, total.clamp(min=1e-12))
        return known[1]

    def __call__(self, value: Tensor, weight: Tensor) -> Tensor:
        local = (value * weight).sum() / self.total(weight)
        if _world() == 1:
            return local
        everywhere = local.detach().clone()
        dist.all_reduce(everywhere)
        return local + (everywhere - local).detach()


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _detached(draw: Draw) -> Draw:
    return draw._replace(value={k: v.detach() for k, v in draw.value.items()})


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
