"""`aigc-ray VERB …`: the command line, nothing more."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from aigc_ray import __version__

# Modules that take long to import are imported by the verb that needs them: --help is instant.

Verb = Callable[[argparse.Namespace], Any]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the result goes to stdout, progress and faults to stderr.

    Returns:
        0 done, 1 the work failed, 2 the arguments or the data are wrong.
    """
    parser = _parser()
    # Settings may stand anywhere; argparse takes only those that follow the verb's words at once.
    options, rest = parser.parse_known_args(arguments)
    strange = [word for word in rest if word.startswith("-") or not hasattr(options, "settings")]
    if strange:
        parser.error(f"unknown: {' '.join(strange)}")
    if rest:
        options.settings += rest
    from aigc_ray.errors import UserError

    try:
        result = options.verb(options)
    except UserError as fault:
        return _failed(str(fault), 2, options.debug)
    except KeyboardInterrupt:
        kept = not getattr(options, "s3", False)  # the quickstart's own server keeps nothing
        print(f"interrupted{'; the same command goes on from here' * kept}", file=sys.stderr)
        return 130
    except Exception as fault:
        return _failed(f"{type(fault).__name__}: {fault}", 1, options.debug)
    if result is not None:
        print(json.dumps(result, indent=2) if options.json else _plain(result))
    return 0


def _failed(sentence: str, code: int, debug: bool) -> int:
    if debug:
        raise  # called while the exception is handled
    print(f"aigc-ray: {sentence}", file=sys.stderr)
    return code


def _plain(result: Any, indent: str = "") -> str:
    """A result for people: names and values, a list's entries one a line."""
    if isinstance(result, Mapping):
        lines = []
        for key, value in result.items():
            if isinstance(value, (Mapping, list)) and value:
                lines.append(f"{indent}{key}:\n{_plain(value, indent + '  ')}")
            else:
                lines.append(f"{indent}{key}: {_scalar(value)}")
        return "\n".join(lines)
    if isinstance(result, list):
        return "\n".join(
            indent + "  ".join(f"{k}={_scalar(v)}" for k, v in item.items())
            if isinstance(item, Mapping)
            else f"{indent}{_scalar(item)}"
            for item in result
        )
    return f"{indent}{_scalar(result)}"


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, (Mapping, list)):
        return json.dumps(value)
    return "-" if value is None else str(value)


# --- the verbs ----------------------------------------------------------------------------------


def _data(options: argparse.Namespace) -> Any:
    from aigc_ray import catalogue

    if options.action == "list":
        return [catalogue.entry(name) for name in catalogue.names()]
    return {"file": str(catalogue.fetch(options.name))}


def _ingest(options: argparse.Namespace) -> Any:
    from aigc_ray import config
    from aigc_ray.ingest import ingest
    from aigc_ray.tasks import task_class

    changes = config.parse(options.settings)
    own = {key: changes.pop(key) for key in ("seed", "max_reject_fraction") if key in changes}
    task = config.override(task_class(options.task)(), changes)
    facts = ingest(
        task,
        options.source,
        options.dest,
        seed=config.convert("seed", int, own.get("seed", 0)),
        max_reject_fraction=config.convert(
            "max_reject_fraction", float, own.get("max_reject_fraction", 0.05)
        ),
    )
    splits = {name: {"rows": s["rows"], **s["classes"]} for name, s in facts["splits"].items()}
    kept = ("rejects", "duplicates", "patients", "flags", "synthetic")
    found = {key: facts[key] for key in kept if key in facts}  # older data sets have no flags
    return {"data": options.dest, "splits": splits} | found


def _train(options: argparse.Namespace) -> Any:
    from aigc_ray import config
    from aigc_ray.train import train

    settings = config.parse(options.settings)
    return train(options.task, options.data, settings, fresh=options.fresh)


def _tune(options: argparse.Namespace) -> Any:
    from aigc_ray import config
    from aigc_ray.tune import tune

    return tune(options.task, options.data, config.parse(options.settings), fresh=options.fresh)


def _evaluate(options: argparse.Namespace) -> Any:
    from aigc_ray import config
    from aigc_ray.evaluate import evaluate

    changes = config.parse(options.settings)
    return evaluate(
        options.model,
        options.data,
        options.split,
        recalibrate=options.recalibrate,
        changes=changes,
    )


def _generate(options: argparse.Namespace) -> Any:
    from aigc_ray import config
    from aigc_ray.generate import generate

    request = config.parse(options.settings)
    seed = config.convert("seed", int, request.pop("seed", 0))
    return generate(options.model, options.n, options.out, seed, request)


def _predict(options: argparse.Namespace) -> Any:
    from aigc_ray.predict import predict

    return predict(options.model, options.input, options.out)


def _models(options: argparse.Namespace) -> Any:
    from aigc_ray import registry

    if options.action == "list":
        return registry.models()
    if options.action == "show":
        found = registry.show(options.model)
        return found if options.json else found["card"]
    if options.action == "promote":
        return registry.promote(options.model, options.alias)
    return registry.rollback(options.task, options.alias)


def _runs(options: argparse.Namespace) -> Any:
    from aigc_ray import runs

    if options.action == "list":
        return runs.listed()
    if options.action == "show":
        return runs.show(options.name)
    return runs.prune(options.keep)


def _serve(options: argparse.Namespace) -> None:
    from aigc_ray import serving

    serving.run(host=options.host, port=options.port)


def _quickstart(options: argparse.Namespace) -> Any:
    from aigc_ray.quickstart import quickstart

    return quickstart(s3=options.s3, leave=options.exit, port=options.port)


# --- the arguments ------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print the result as JSON")
    shared.add_argument("--debug", action="store_true", help="show where a fault came from")
    parser = argparse.ArgumentParser(
        prog="aigc-ray",
        description="Generative adversarial AI for medicine on Ray. Not a medical device.",
        epilog=f"Runs, models and data lie in AIGC_HOME ({os.environ.get('AIGC_HOME', 'unset')}).",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, function: Verb, text: str, *words: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, parents=[shared])
        made.set_defaults(verb=function)
        for word in words:
            made.add_argument(word)
        return made

    def settings(made: argparse.ArgumentParser) -> None:
        made.add_argument("settings", nargs="*", default=[], metavar="key=value", help="settings")

    def actions(name: str, function: Verb, text: str) -> Callable[..., argparse.ArgumentParser]:
        made = verbs.add_parser(name, help=text, description=text)
        below = made.add_subparsers(title="actions", required=True, dest="action", metavar="ACTION")

        def action(name: str, text: str, *words: str) -> argparse.ArgumentParser:
            one = below.add_parser(name, help=text, description=text, parents=[shared])
            one.set_defaults(verb=function)
            for word in words:
                one.add_argument(word)
            return one

        return action

    data = actions("data", _data, "public data sets by name")
    data("list", "what there is, with licences")
    data("fetch", "get one, from AIGC_DATA_MIRROR or its own address", "name")

    settings(verb("ingest", _ingest, "raw files into checked Parquet", "task", "source", "dest"))
    for name, function, text in (
        ("train", _train, "train, evaluate and register a model; resumes when run again"),
        ("tune", _tune, "search settings with many trainings; registers the best"),
    ):
        made = verb(name, function, text, "task")
        made.add_argument("--data", required=True, help="URI of an ingested data set")
        made.add_argument("--fresh", action="store_true", help="start anew, resume nothing")
        settings(made)
    made = verb("evaluate", _evaluate, "metrics of a model on a data set", "model")
    made.add_argument("--data", required=True, help="URI of an ingested data set")
    made.add_argument("--split", default="test", choices=("train", "val", "test"))
    made.add_argument(
        "--recalibrate",
        action="store_true",
        help="fit it to the validation split of these data first, as a new version",
    )
    settings(made)
    made = verb("generate", _generate, "samples into a folder or a .parquet file", "model")
    made.add_argument("--n", type=int, required=True, help="how many")
    made.add_argument("--out", required=True, help="URI to write to")
    settings(made)
    made = verb("predict", _predict, "answers for a file or a folder of files", "model")
    made.add_argument("--input", required=True, help="URI of a file or folder")
    made.add_argument("--out", required=True, help="URI ending in .jsonl, .csv or .parquet")

    models = actions("models", _models, "the registry")
    models("list", "every version")
    models("show", "one model's card", "model")
    for one in (
        models("promote", "let an alias mean this version; the served model follows", "model"),
        models("rollback", "let an alias mean what it meant before", "task"),
    ):
        one.add_argument("--alias", default="production")

    runs = actions("runs", _runs, "trainings, done and under way")
    runs("list", "every run")
    runs("show", "one run's settings, progress and result", "name")
    runs(
        "prune", "delete checkpoints of finished runs, and of all but the newest runs"
    ).add_argument("--keep", type=int, default=10, help="newest runs to keep whole")

    made = verb("serve", _serve, "answer requests over HTTP, with the page at /")
    made.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to the network")
    made.add_argument("--port", type=int, default=8000)
    made = verb("quickstart", _quickstart, "the whole way from data to a served model")
    made.add_argument("--exit", action="store_true", help="end after the first answered requests")
    made.add_argument("--s3", action="store_true", help="through an S3 server on loopback")
    made.add_argument("--port", type=int, default=8000)
    return parser


if __name__ == "__main__":
    sys.exit(main())
