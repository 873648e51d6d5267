"""The forms in which the weight of a layer lies on disk. Each looks at the header alone, and answers whether it is its own.

A new one is a class, in a file of its own or beside its relatives, and a line in FORMS; one that is only to be refused is
a row in refused.py. A file may have layers in several forms.
"""

from __future__ import annotations

from collections.abc import Iterable

from sd3deploy.encoders.forms.bnb import FourBitSaved, Int8Saved
from sd3deploy.encoders.forms.comfy import Comfy
from sd3deploy.encoders.forms.declared import declared_of, layers_declared
from sd3deploy.encoders.forms.form import Form, Layer, Mine, Unusable
from sd3deploy.encoders.forms.fp8 import ScaledFp8, ScaledWide
from sd3deploy.encoders.forms.gguf import GgufTypes
from sd3deploy.encoders.forms.nunchaku import Nunchaku
from sd3deploy.encoders.forms.plain import Plain
from sd3deploy.encoders.forms.refused import REFUSED
from sd3deploy.encoders.forms.sdnq import Sdnq
from sd3deploy.encoders.forms.uniform import require_uniform
from sd3deploy.errors import EncoderError

__all__ = ["FORMS", "Layer", "Mine", "declared_of", "layers_declared", "recognise", "recognise_all"]

FORMS: tuple[Form | type[Form], ...] = (
    Sdnq, *REFUSED, Comfy, FourBitSaved, Int8Saved, Nunchaku, ScaledFp8, ScaledWide, GgufTypes, Plain
)  # fmt: skip
# What may lie beside a weight and says nothing about it: hints for activations, which are not quantized here.
_IGNORED = ("input_scale", "scale_input", "scale_output", "output_scale")


def recognise_all(layers: Iterable[Layer], *, marked: bool = False) -> dict[str, Mine]:
    """Path → the form of each layer of a file. marked: whether the file says as a whole that its FP8 has scales. Raises EncoderError for
    a layer that can not be read, and for one that lacks what its like have.
    """
    found = {layer.path: (layer, recognise(layer)) for layer in layers}
    require_uniform(found, marked=marked)
    return {path: mine for path, (_, mine) in found.items()}


def recognise(layer: Layer) -> Mine:
    """The form of a layer. Raises EncoderError for one that can not be read, with what it is, or what comes nearest."""
    answers = []
    for form in FORMS:
        answer = form.look(layer)
        if isinstance(answer, Mine):
            left = [stored.key for part, stored in layer.parts.items() if part not in answer.used and part not in _IGNORED]
            if left:
                raise EncoderError("form.left-over", file=layer.file.name, tensor=left[0], form=answer.layout.name)
            return answer
        if isinstance(answer, Unusable):
            raise EncoderError(answer.id, file=layer.file.name, layer=layer.path, **answer.values)
        answers.append((answer.near, form.title, answer.why))
    _, title, why = max(reversed(answers), key=lambda one: one[0])
    if method := layer.folder.get("quant_method"):
        why = f"{why}; config.json says {str(method)[:40]}"
    raise EncoderError("form.unknown", file=layer.file.name, layer=layer.path, form=title, why=why)
