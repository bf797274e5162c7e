"""The one kind of error that is told to the user without a traceback, and storage's forms of it."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user's: arguments, data, a missing bucket, wrong keys, a damaged file.

    Its text is one sentence that names the file, field or key and what would be right. The command
    line prints it and exits with 2; over HTTP it becomes a problem document.
    """


class Missing(UserError):  # noqa: N818
    """There is nothing at this address."""


class Exists(UserError):  # noqa: N818
    """Something is already at this address."""


class Changed(UserError):  # noqa: N818
    """Another writer was here since the tag was read."""


def conflict(uri: str, tag: str | None) -> UserError:
    """What a conditional write meets where the file is not as its writer took it to be."""
    if tag is None:
        return Exists(f"{uri} already exists")
    return Changed(f"{uri} was changed by another writer: read it again")
