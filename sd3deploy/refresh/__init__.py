"""Make packages that were just installed usable in the running process, or say why only a new process can use them.

pip changes files; a running process keeps what it learned before: that a package is absent (finders, availability caches,
flags), and what it therefore did not do (guarded imports, lazy tables, placeholders). `refresh` corrects exactly that and
changes nothing that was right. It never reloads a module: classes of a reloaded library are strangers to those in use.
"""

from __future__ import annotations

from sd3deploy.refresh.verdict import Unusable, Verdict, refresh

__all__ = ["Unusable", "Verdict", "refresh"]
