"""The one kind of error that is told to the user without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user's: arguments, data, a missing bucket, wrong keys, a damaged file.

    Its text is one sentence that names the file, field or key and what would be right. The command
    line prints it and exits with 2; over HTTP it becomes a problem document.
    """
