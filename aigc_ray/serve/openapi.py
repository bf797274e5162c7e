"""What /openapi.json says beyond the signatures: bodies are read by hand, so that they can be
refused in our own words."""

from __future__ import annotations

from typing import Any

from aigc_ray.serve.problems import MEDIA_TYPE

_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "one sentence: what is wrong, what is right"},
        "item": {"type": "integer", "description": "number of the item, from 0"},
        "field": {"type": "string"},
    },
}
PROBLEM: dict[str, Any] = {
    "description": "A problem document (RFC 9457)",
    "content": {MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA}},
}
_STATUSES = {
    400: "The body cannot be read",
    401: "The token is missing or wrong",
    404: "The task is not served",
    413: "The body is too large",
    415: "The body is of another type",
    422: "An item or a field is not acceptable",
    429: "Too much at once; Retry-After says when to come back",
    503: "The task is down; Retry-After says when to come back",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {**PROBLEM, "description": words} for status, words in _STATUSES.items()
}

_MODEL = {
    "type": "object",
    "properties": {
        "task": {"type": "string"},
        "version": {"type": "integer", "nullable": True},
        "sha256": {"type": "string"},
    },
}


def _answer(items: str, **more: Any) -> dict[str, Any]:
    properties = {"model": _MODEL, "items": _list(items), **more}
    return {"type": "object", "properties": properties}


def _list(description: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "object"}, "description": description}


EXPLAIN: dict[str, Any] = {
    "type": "boolean",
    "default": False,
    "description": "with a heat map or attributions for each answer, or why they are withheld; at "
    "most 16 items",
}
HORIZONS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "number"},
    "description": "of prognosis: times to tell the chance of being without the event at",
}

_MOTIF = {
    "type": "object",
    "properties": {"motif": {"type": "string"}, "position": {"type": "integer", "minimum": 0}},
}

PREDICT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["items"],
                    "properties": {
                        "items": _list(
                            '1 to 64 with files, e.g. {"image": a PNG, JPEG, TIFF or DICOM '
                            'file in base64}, for a DICOM file of several frames with "frame", '
                            'from 1; of prognosis {"age": 55, …}: features by name, any of which '
                            'may be missing, with "what_if": {"age": 45} for a second curve; of '
                            'molecules {"smiles": "CCO"}, with "svg": true drawn, and of dna '
                            '{"sequence": "ACGT…"}, perhaps with a "name"; 1 to 1,000'
                        ),
                        "horizons": HORIZONS,
                        "explain": EXPLAIN,
                    },
                }
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "each row of a .csv file and each record of a .fa or "
                            ".fasta file, perhaps with .gz, is an item; of proteins a .pdb or .cif "
                            "file, perhaps with .gz",
                        },
                        "horizons": HORIZONS,
                        "frame": {
                            "type": "integer",
                            "description": "after a DICOM file of several frames: which, from 1",
                        },
                        "chain": {
                            "type": "string",
                            "description": "of proteins: which chain of the file; else the first",
                        },
                        "explain": EXPLAIN,
                    },
                }
            },
        },
    },
    "responses": {
        "200": {
            "description": "The model and an answer for each item, in their order",
            "content": {
                "application/json": {
                    "schema": _answer(
                        "one an item: label (null where abstained), probabilities, set, abstained "
                        "and reason, outlier, findings at their operating points, warnings, "
                        "explanation; of molecules: properties, alerts, nats, activities (value, "
                        "spread, low and high of numbers), similarity to a training molecule, "
                        "in_domain; of prognosis: curve with its band, median, interval (5 to "
                        "95 %), risk, horizons, what_if; of dna: name, and the explanation's bases "
                        "(what each letter adds to the score); of proteins: chain, residues, "
                        "sequence, secondary_structure (H, E or C a residue) with "
                        "secondary_confidence, plausibility, coordinates of the CA atoms, and "
                        'further windows of the chain as answers under keys such as "A:65-128"'
                    )
                }
            },
        }
    },
}

GENERATE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "n": {"type": "integer", "default": 1, "minimum": 1},
                        "seed": {"type": "integer", "default": 0, "minimum": 0},
                        "class": {
                            "type": "string",
                            "description": "diagnosis, dna, proteins: one of the classes",
                        },
                        "targets": {
                            "type": "object",
                            "description": "molecules: properties and activities by name, each a "
                            "number or a range [low, high]",
                        },
                        "scaffold": {
                            "type": "string",
                            "description": "molecules: a SMILES that is kept whole, with [*] where "
                            "something is to be attached",
                        },
                        "fragments": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "molecules: two SMILES, each with one [*], to be linked",
                        },
                        "must_have": {"type": "array", "items": {"type": "string"}},
                        "must_not_have": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "molecules: SMARTS patterns",
                        },
                        "filters": {
                            "type": "array",
                            "items": {"type": "string", "enum": ["pains", "brenk", "moses"]},
                            "default": ["pains", "brenk"],
                            "description": "molecules: whose alerts none may have",
                        },
                        "novel": {
                            "type": "boolean",
                            "default": True,
                            "description": "molecules: none of the training set",
                        },
                        "similar_to": {"type": "string", "description": "molecules: a SMILES"},
                        "similarity": {
                            "type": "array",
                            "items": {"type": "number"},
                            "default": [0.4, 1],
                            "description": "molecules: Tanimoto's coefficient to similar_to",
                        },
                        "diverse": {
                            "type": "boolean",
                            "default": False,
                            "description": "molecules: far from each other (MaxMin)",
                        },
                        "optimise": {
                            "type": "string",
                            "description": "molecules: what to raise, or with a minus in front to "
                            "lower, in as many rounds as `rounds` says",
                        },
                        "rounds": {"type": "integer", "default": 5, "minimum": 1, "maximum": 50},
                        "temperature": {
                            "type": "number",
                            "default": 0.95,
                            "minimum": 0.1,
                            "maximum": 3,
                        },
                        "guidance": {
                            "type": "number",
                            "description": "molecules: how far beyond what targets ask for; 0.5 "
                            "where properties are among them, else 0",
                        },
                        "critic": {
                            "type": "boolean",
                            "default": True,
                            "description": "molecules: whether the critic turns some away",
                        },
                        "evidence": {"type": "boolean", "default": True},
                        "svg": {"type": "boolean", "default": False},
                        "molblock": {"type": "boolean", "default": False},
                        "motifs": {
                            "type": "array",
                            "items": {"oneOf": [{"type": "string"}, _MOTIF]},
                            "description": "dna: letters (IUPAC's) that stand somewhere, or at a "
                            "position, on the strand that is given",
                        },
                        "fixed": {
                            "type": "string",
                            "description": "dna: a template of the whole length, N where any "
                            "letter may stand",
                        },
                        "gc": {
                            "type": "array",
                            "items": {"type": "number"},
                            "default": [0, 1],
                            "description": "dna: the share of G and C, from and to",
                        },
                        "forbidden": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "dna: enzymes by name, such as EcoRI, or letters, whose "
                            "site is on neither strand",
                        },
                        "plausible": {
                            "type": "number",
                            "default": 0.5,
                            "minimum": 0,
                            "description": "proteins: how plausible, at least, the recogniser "
                            "finds a structure; below 1",
                        },
                        "sure": {
                            "type": "number",
                            "default": 0.5,
                            "minimum": 0,
                            "description": "dna: the probability of its class, at least, that the "
                            "recogniser gives a sequence; below 1",
                        },
                        "patient": {
                            "type": "object",
                            "description": "prognosis: features of one patient, whose times to the "
                            "event are drawn in the place of new patients",
                        },
                    },
                }
            }
        },
    },
    "responses": {
        "200": {
            "description": "The model, the samples with their seeds, and what could not be made",
            "content": {
                "application/json": {
                    "schema": _answer(
                        "samples; files in base64; of dna: class, sequence, gc, probability, and "
                        "the motifs with their positions, from 0; of proteins: class, coordinates "
                        "of the CA atoms, pdb (a file's text), secondary_structure, plausibility, "
                        "probability, nearest (rmsd), checks, map (a PNG)",
                        shortfall=_list("what is missing"),
                    )
                },
                "application/x-ndjson": {
                    "schema": {"type": "object", "description": "one sample a line"}
                },
            },
        }
    },
}
