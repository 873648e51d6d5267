"""Make packages that were just installed usable in the running process, or say why only a new process can use them.

pip changes files; a running process keeps what it learned before: that a package is absent, and what it therefore did not do. `refresh`
corrects exactly that, changes nothing that was right, and asks the libraries at the end. It never reloads a module: classes of a reloaded
library are strangers to those in use. No statement of a library is run: cached answers, flags and tables are data, and a skipped import
is bound by name.

The text encoders of this extension need none of it but the finders: they are built from bitsandbytes' own layers (encoders/assemble.py).
What is here, and for whom (each case in tests/no_restart, on three generations of the libraries; lines of each file):

    finders.py    48  everybody: Python sees the new files; what a failed import or an empty folder left is swept away
    package.py    87  everybody: what is on disk and in memory; whether a library in use was replaced says sd3deploy/loaded.py (71)
    caches.py    117  INT8 (`.to()` of transformers and diffusers asks for bitsandbytes' version), the T5 tokenizer from a sentencepiece
                      file, offload of diffusers by accelerate, peft on 4-bit layers, models that the webui loads with bitsandbytes or gguf
    imports.py   123  offload and device maps (accelerate: 20 modules skip imports without it), bitsandbytes and gguf in diffusers, the T5
                      tokenizer of transformers 4
    consumers.py 169  everybody: the verdict is what transformers, diffusers, accelerate and peft answer, checked with a new process
    verdict.py   165  the order of these, and what is said
    private.py    32  names without a public way in

Not brought up to date, and said so where a library has a flag for it: peft for diffusers' LoRA (`USE_PEFT_BACKEND` and what follows from
it), pipelines of other models that diffusers replaces by placeholders (Kolors), tables of AutoTokenizer.
"""

from __future__ import annotations

from sd3deploy.refresh.consumers import is_asked_about
from sd3deploy.refresh.package import is_loaded
from sd3deploy.refresh.verdict import Unusable, Verdict, forget, refresh

__all__ = ["Unusable", "Verdict", "forget", "is_asked_about", "is_loaded", "refresh"]
