"""Generative adversarial AI for medicine on Ray: it generates and recognises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aigc_ray.model import Model

__version__ = "0.1.0"


def load(model: str) -> Model:
    """A model by alias (`diagnosis@production`), version (`diagnosis:7`) or URI, ready to use."""
    from aigc_ray import registry
    from aigc_ray.model import Model

    return Model.open(registry.fetch(model))
