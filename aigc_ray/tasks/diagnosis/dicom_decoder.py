"""The decoders that damaged frames can crash, in a process of their own.

GDCM ends the whole process at some damaged JPEG (measured: twice in 13,000 files with a few bytes
changed), which would take a replica and all its requests along. So its frames are decoded by a
child that stays for the next; where it dies or takes too long, the frame is damaged and the next
one has another child.

Run as a script this file is the child, which needs numpy and pydicom alone. A request and its
answer are a line of JSON and as many bytes as that says.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

SECONDS = 60.0  # for a frame; the largest take two
NEEDED = (  # to decode a frame
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip


class Decoder:
    """A child process that decodes frames, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def decode(self, header: Dataset, syntax: str, plugin: str, frame: bytes) -> np.ndarray:
        """(H, W) or (H, W, 3), as pydicom gives it.

        Raises:
            ValueError: the frame cannot be decoded.
        """
        elements = {name: header.get(name) for name in NEEDED}
        asked = {name: value for name, value in elements.items() if value is not None}
        with self._lock:
            child = self._started()
            assert child.stdin is not None and child.stdout is not None
            timer = threading.Timer(SECONDS, child.kill)
            timer.start()
            try:
                _send(child.stdin, {"elements": asked, "syntax": syntax, "plugin": plugin}, frame)
                found = _receive(child.stdout)
            except OSError:  # a broken pipe
                found = None
            finally:
                timer.cancel()
            if found is None:
                self._end()
                raise ValueError("the decoder died of the frame, or had no end")
        answer, data = found
        if "shape" not in answer:
            raise ValueError("the decoder refuses the frame")
        return np.frombuffer(bytearray(data), answer["dtype"]).reshape(answer["shape"])

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid():  # a fork has no child of its own
            # -P: the modules beside this file are not to be taken for libraries.
            self._child = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._owner = os.getpid()
            atexit.register(self._end)
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            with contextlib.suppress(OSError):  # what was not sent yet has nobody to go to
                child.communicate()
            child.wait()


DECODER = Decoder()


def _send(pipe: IO[bytes], head: dict[str, Any], data: bytes) -> None:
    pipe.write(json.dumps(head | {"bytes": len(data)}).encode() + b"\n")
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None where the other side has ended."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    head = json.loads(line)
    data = pipe.read(head["bytes"])
    return (head, data) if len(data) == head["bytes"] else None


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    while (request := _receive(requests)) is not None:
        head, frame = request
        try:
            header = Dataset()
            for name, value in head["elements"].items():
                setattr(header, name, value)
            header.NumberOfFrames, header.PixelData = 1, encapsulate([frame])
            header.file_meta = FileMetaDataset()
            header.file_meta.TransferSyntaxUID = UID(head["syntax"])
            array = np.asarray(pixel_array(header, index=0, decoding_plugin=head["plugin"]))
        except Exception:
            _send(answers, {}, b"")
        else:
            _send(answers, {"shape": array.shape, "dtype": array.dtype.str}, array.tobytes())


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints is no answer
    _serve(sys.stdin.buffer, answers)
