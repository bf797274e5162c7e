"""Minutes on real X-rays: what is trained must beat what is trivial.

Run by `make check-real` with AIGC_DATA_MIRROR set. The benchmarks hold the figures.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from aigc_ray import catalogue, registry, rows
from aigc_ray.ingest import ingest, load_manifest
from aigc_ray.model import Model
from aigc_ray.quickstart import SETTINGS
from aigc_ray.recognition import auc
from aigc_ray.tasks.diagnosis.data import encode
from aigc_ray.tasks.diagnosis.task import Diagnosis
from aigc_ray.train import train

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def trained(tmp_path_factory, ray):
    """The data set, the summary of a training of some minutes, and its model."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIGC_HOME", str(home))
        data = str(home / "data")
        ingest(Diagnosis(), str(catalogue.fetch("pneumoniamnist")), data)
        summary = train("diagnosis", data, SETTINGS)
        return data, summary, Model.open(registry.fetch(summary["model"]))


@pytest.fixture(scope="module")
def retina(tmp_path_factory):
    """Images of another kind, from the mirror, which tests by themselves do not see."""
    return catalogue.fetch("retinamnist", home=str(tmp_path_factory.mktemp("retina")))


def images(data: str, split: str, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    columns = rows.load(data, load_manifest(data), split, ["image", "label"])
    batch = encode(columns, torch.zeros(len(columns["label"])), model.task.schema)
    return batch.value["image"], batch.value["label"]


@pytest.mark.timeout(1500)
def test_recognition_beats_a_linear_model_on_pixels(trained):
    data, summary, model = trained
    train_images, train_labels = images(data, "train", model)
    test_images, test_labels = images(data, "test", model)
    linear = LogisticRegression(max_iter=500).fit(train_images.flatten(1), train_labels)
    trivial = auc(linear.decision_function(test_images.flatten(1)), test_labels.numpy())
    assert summary["metrics"]["test"]["auc"] > max(trivial, 0.9)
    assert summary["metrics"]["test"]["acc"] > 0.7  # the larger class alone gives .625


def test_generated_images_are_nearer_to_real_ones_than_trivial_ones_and_of_their_class(trained):
    data, _, model = trained
    real, labels = images(data, "val", model)
    condition = model.task._condition(labels[:256], torch.arange(256))
    made = model.draw(condition).value["image"]
    trivial = gaussian(*images(data, "train", model), labels[:256])
    near, far = (distance(real[256:512], images) for images in (made, trivial))
    # Measured: -.001 against .06 (unbiased: 0 for images of one kind).
    assert near < 0.5 * far
    drawn = condition._replace(value=condition.value | {"image": made})
    probability = model.recognise(drawn)["probability"]
    assert float((probability.argmax(1) == labels[:256]).float().mean()) > 0.7


def test_the_surest_answers_are_better_and_strange_images_are_not_answered(trained, retina):
    data, summary, model = trained
    found = summary["metrics"]["test"]
    assert found["answered_acc"] > found["acc"] and found["answered"] > 0.3
    eyes = np.load(retina)["test_images"][:100]
    noise = np.random.default_rng(0).integers(0, 256, (100, 28, 28), np.uint8)
    chests = ((images(data, "test", model)[0][:100, 0] + 1) * 127.5).round().byte().numpy()
    shares = []
    for pictures in (chests, eyes, noise):
        answers = model.predict([{"file": png(one)} for one in pictures])
        shares.append(sum("out of distribution" in (a["reason"] or "") for a in answers) / 100)
    assert shares[0] < 0.1 and shares[1] > 3 * shares[0] and shares[2] > 0.9, shares


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert("L").save(file, "PNG")
    return file.getvalue()


def test_heat_maps_hang_on_what_was_learned_and_nothing_is_copied(trained):
    _, _, model = trained
    assert model.info["explanation"]["passes"], model.info["explanation"]
    generation = model.info["generation"]
    assert not generation["copies"] and generation["copy_rate"]["value"] < 0.02
    assert generation["tstr_auc"] > 0.7  # of images it drew, something can be learned


def gaussian(image: torch.Tensor, label: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Each pixel drawn by itself, with the mean and the spread that it has in the class."""
    torch.manual_seed(0)
    mean, spread = (
        torch.stack([of(image[label == k], 0) for k in (0, 1)])[wanted]
        for of in (torch.mean, torch.std)
    )
    return mean + spread * torch.randn_like(mean)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012), unbiased."""
    one, other = (torch.nn.functional.avg_pool2d(x, 4).flatten(1) for x in (one, other))
    scale = 2 * torch.cdist(one, one).median() ** 2

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(torch.cdist(a, b) ** 2) / scale)

    n, m = len(one), len(other)
    within = (kernel(one, one).sum() - n) / (n * (n - 1)) + (kernel(other, other).sum() - m) / (
        m * (m - 1)
    )
    return float(within - 2 * kernel(one, other).mean())
