"""The whole way once: data, ingestion, training, evaluation, registry, serving, a request."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from aigc_ray import catalogue, cluster, config, registry, serving, storage
from aigc_ray.ingest import ingest, load_manifest
from aigc_ray.tasks import task_class
from aigc_ray.tasks.diagnosis import phantoms
from aigc_ray.tasks.dna import phantoms as sequences
from aigc_ray.tasks.proteins import phantoms as structures
from aigc_ray.train import train

# What fits into six minutes of two cores; `aigc-ray train` without settings trains for longer, a
# wider recogniser, and a second one that learns from generated images too.
SETTINGS = {
    "num_workers": 2,
    "steps": 400,
    "recogniser_width": 16,
    "validate_every": 100,
    "generated_share": 0,
    "transfer_steps": 40,
}
# A minute more: patients of a real study, which come with an installed package.
PATIENTS = "gbsg2"
PROGNOSIS = {"num_workers": 2, "transfer_steps": 100}
PATIENT: dict[str, Any] = {
    "age": 55, "horTh": "yes", "tsize": 30, "tgrade": "II", "pnodes": 4, "horizons": [365, 1095],
}  # fmt: skip
# And one more: a small generator of real molecules, beside the one that comes with the package. By
# itself it needs no workers, which would take a quarter of the time to start.
COMPOUNDS = "nci"
MOLECULES = {
    "num_workers": 0,
    "batch_size": 128,
    "steps": 140,
    "adversarial_steps": 10,
    "beside": False,
    "width": 192,
    "critic_width": 48,
    "generator_rate": 5e-3,
    "references": 1000,
}
WISH: dict[str, Any] = {"n": 4, "seed": 1, "targets": {"qed": [0.7, 1.0]}}
# No set of promoters or of structures comes with a package: a minute more for each, on phantoms.
SEQUENCES = {"train": 1200, "val": 200, "test": 300}
DNA = {
    "num_workers": 0,
    "steps": 120,
    "width": 16,
    "recogniser_width": 32,
    "validate_every": 60,
    "transfer_steps": 0,
}
PROMOTERS: dict[str, Any] = {"n": 2, "seed": 1, "class": "promoter"}
CHAINS = 96
PROTEINS = {
    "num_workers": 0,
    "batch_size": 16,
    "steps": 60,
    "width": 16,
    "recogniser_width": 32,
    "references": 200,
    "validate_every": 30,
    "transfer_steps": 0,
}
PHANTOMS = "phantoms drawn by this program"
FORESEEN = ("harrell_c", "ibs", "d_calibration_p")
FOLDED = ("auc", "structure_acc")
WORKERS = 2
TOLD = ("auc", "acc", "ece", "answered", "answered_acc")  # of the test split
BUCKET = "aigc-quickstart"


def quickstart(*, s3: bool = False, leave: bool = False, port: int = 8000) -> dict[str, Any] | None:
    """From nothing to a served model.

    Args:
        s3: keep everything in a bucket of an S3 server on the loopback address.
        leave: end after the first answered requests; else serve until Ctrl-C.

    Returns:
        The seconds of each phase, metrics, answer and addresses, where it `leave`s.
    """
    began = ended = time.monotonic()
    seconds: dict[str, float] = {}

    def done(phase: str, told: str) -> None:
        nonlocal ended
        before, ended = ended, time.monotonic()
        seconds[phase] = round(ended - before, 1)
        print(f"[{seconds[phase]:6.1f} s] {phase}: {told}", file=sys.stderr)

    with ExitStack() as stack:
        stack.enter_context(_ended_by_sigterm())
        if s3:
            stack.enter_context(_bucket())
        source, synthetic = _source()
        done("data", f"{source.name}{f' ({PHANTOMS})' if synthetic else ''}")
        stack.enter_context(cluster.session(cpus=WORKERS + 2))
        data = storage.join(storage.home(), "data", source.stem)
        ingest(task_class("diagnosis")(), str(source), data)
        rows = {name: part["rows"] for name, part in load_manifest(data)["splits"].items()}
        done("ingest", f"{rows} images in {data}")
        summary = train("diagnosis", data, SETTINGS)
        test = summary["metrics"]["test"]
        metrics = {name: test[name] for name in TOLD if test.get(name) is not None}
        done("train", f"{summary['model']}, test split {_told(metrics)}")
        registry.promote(summary["model"])
        done("promote", f"diagnosis@production is {summary['model']}")
        foreseen = _prognosis()
        found = foreseen["metrics"]["test"]
        told = _told({name: found[name] for name in FORESEEN if found.get(name) is not None})
        done("prognosis", f"{foreseen['model']}, patients of {PATIENTS}, test split {told}")
        drawn = _molecules()
        nats = drawn["metrics"]["test"]["nats"]
        told = f"{drawn['model']}, compounds of {COMPOUNDS}, test split {nats:.1f} nats a molecule"
        done("molecules", f"{told}; the pretrained model is promoted")
        read = _dna()
        told = _told({"auc": read["metrics"]["test"]["auc"]})
        done("dna", f"{read['model']}, {PHANTOMS}, test split {told}")
        folded, chain = _proteins()
        found = folded["metrics"]["test"]
        told = _told({name: found[name] for name in FOLDED if found.get(name) is not None})
        done("proteins", f"{folded['model']}, {PHANTOMS}, test split {told}")
        stack.callback(serving.run(port=port, block=False))
        address = f"http://127.0.0.1:{port}"
        done("serve", address)
        answer = _predict(address, "diagnosis", _image(data))
        done("request", json.dumps(answer["items"][0]))
        course = _predict(address, "prognosis", PATIENT)
        curve = course["items"][0]
        done("patient", json.dumps({key: curve[key] for key in ("median", "interval", "horizons")}))
        made = _ask(address, "molecules/generate", WISH)
        done("molecule", json.dumps([item["smiles"] for item in made["items"]]))
        written = _ask(address, "dna/generate", PROMOTERS)
        done("sequence", json.dumps([item["sequence"] for item in written["items"]]))
        seen = _predict(address, "proteins", {"pdb": chain})
        window = seen["items"][0]
        done("structure", window["secondary_structure"])
        total = round(time.monotonic() - began, 1)
        print(f"the page    {address}", file=sys.stderr)
        reports = [one["report"] for one in (summary, foreseen, drawn, read, folded)]
        for uri in reports:
            print(f"the report  {_link(uri) if s3 else uri}", file=sys.stderr)
        print(f"in {total} s", file=sys.stderr)
        if leave:
            return {
                "seconds": {**seconds, "total": total},
                "metrics": summary["metrics"],
                "synthetic": synthetic,
                "training": summary["training"],
                "answer": answer,
                "prognosis": {
                    "metrics": foreseen["metrics"],
                    "training": foreseen["training"],
                    "answer": course,
                    "report": foreseen["report"],
                },
                "molecules": {
                    "metrics": drawn["metrics"],
                    "training": drawn["training"],
                    "answer": made,
                    "report": drawn["report"],
                },
                "dna": {
                    "metrics": read["metrics"],
                    "training": read["training"],
                    "answer": written,
                    "report": read["report"],
                    "synthetic": True,
                },
                "proteins": {
                    "metrics": folded["metrics"],
                    "training": folded["training"],
                    "answer": seen,
                    "report": folded["report"],
                    "synthetic": True,
                },
                "page": address,
                "report": summary["report"],
            }
        print("Ctrl-C ends it", file=sys.stderr)
        while True:
            time.sleep(3600)


def _told(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def _link(uri: str) -> str:
    """Where a browser finds what lies in a bucket, for a day."""
    import boto3

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    wanted = {"Bucket": bucket, "Key": key, "ResponseContentType": "text/html"}
    link: str = boto3.client("s3").generate_presigned_url("get_object", wanted, ExpiresIn=86_400)
    return link


def _source() -> tuple[Path, bool]:
    """PneumoniaMNIST, or phantoms where it cannot be had."""
    try:
        return catalogue.fetch("pneumoniamnist", timeout=10.0), False
    except catalogue.Unreachable as fault:
        print(f"{fault}; training on phantoms instead", file=sys.stderr)
    path = storage.cache() / "phantoms.npz"
    phantoms.write(path)
    return path, True


def _prognosis() -> dict[str, Any]:
    """A model of patients' courses, trained and promoted."""
    source = catalogue.fetch(PATIENTS)
    task = config.override(
        task_class("prognosis")(), {"columns": str(source.parent / catalogue.COLUMNS)}
    )
    data = storage.join(storage.home(), "data", PATIENTS)
    ingest(task, str(source), data, parallel=0)
    summary = train("prognosis", data, PROGNOSIS)
    registry.promote(summary["model"])
    return summary


def _molecules() -> dict[str, Any]:
    """A small model of molecules, trained; the one that comes with the package is promoted."""
    task = config.override(task_class("molecules")(), {"split": "random"})
    data = storage.join(storage.home(), "data", COMPOUNDS)
    ingest(task, str(catalogue.fetch(COMPOUNDS)), data, parallel=0)
    summary = train("molecules", data, MOLECULES)
    registry.promote(f"molecules@{registry.PRETRAINED}")
    return summary


def _dna() -> dict[str, Any]:
    """A small model of sequences that this program draws, trained and promoted."""
    path = storage.cache() / "phantoms.csv"
    sequences.write(path, **SEQUENCES)
    data = storage.join(storage.home(), "data", "dna_phantoms")
    ingest(task_class("dna")(), str(path), data, parallel=0)
    summary = train("dna", data, DNA)
    registry.promote(summary["model"])
    return summary


def _proteins() -> tuple[dict[str, Any], str]:
    """The same of structures; and one of them, as a PDB file."""
    folder = storage.cache() / "phantoms"
    structures.write(folder, chains=CHAINS)
    data = storage.join(storage.home(), "data", "protein_phantoms")
    ingest(task_class("proteins")(), str(folder), data, parallel=0)
    summary = train("proteins", data, PROTEINS)
    registry.promote(summary["model"])
    return summary, min(folder.iterdir()).read_text()


def _image(data: str) -> dict[str, Any]:
    """The first image of the test split, as a request holds it."""
    import torch

    from aigc_ray import rows
    from aigc_ray.schema import Schema
    from aigc_ray.tasks.diagnosis.data import encode, png

    facts = load_manifest(data)
    first = next(rows.scan(data, facts, "test", ["image"]))
    batch = encode(first, torch.zeros(len(first["image"])), Schema.from_json(facts["schema"]))
    return {"image": base64.b64encode(png(batch.value["image"][0])).decode()}


def _predict(address: str, task: str, item: dict[str, Any]) -> dict[str, Any]:
    """A served model's answer."""
    return _ask(address, f"{task}/predict", {"items": [item]})


def _ask(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/v1/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    if token := os.environ.get("AIGC_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A polite end, as Ctrl-C is one."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _bucket() -> Iterator[None]:
    """An S3 server on the loopback address, with the home in a bucket of it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    changes = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "quickstart",
        "AWS_SECRET_ACCESS_KEY": "quickstart",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AIGC_HOME": f"s3://{BUCKET}/home",
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
