"""Takes out of a text what nobody else should read: tokens, passwords, keys, cookies, e-mail addresses and the names of users.

    kinds → named (a name announces a value) · tokens (known by their shape) · addresses · homes      what looks like a secret
    machine → spellings                                                                               what is known to be one
    Redactor                                                                                          all of them, in order

What is taken out is replaced by a word in angle brackets, so that the sentence around it stays readable. Rather a harmless word too much
than a secret too little, but what a failure is understood by stays: numbers, versions, tracebacks, names of models and settings.
Every step looks at each character a bounded number of times, whatever the text is.
"""

from __future__ import annotations

from sd3deploy.redact.kinds import PLACEHOLDER
from sd3deploy.redact.redactor import Redactor

__all__ = ["PLACEHOLDER", "Redactor"]
