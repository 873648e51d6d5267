"""The forms in which the weight of a layer lies on disk. Each looks at the header alone, and answers whether it is its own.

A new one is a class, in a file of its own or beside its relatives, and a line in FORMS. A file may have layers in several forms.
"""

from __future__ import annotations

from sd3deploy.encoders.forms.form import Form, Layer, Mine, Unusable
from sd3deploy.encoders.forms.fp8 import ScaledFp8
from sd3deploy.encoders.forms.gguf import GgufTypes
from sd3deploy.encoders.forms.plain import Plain
from sd3deploy.encoders.forms.sdnq import Sdnq
from sd3deploy.errors import EncoderError

__all__ = ["FORMS", "Layer", "Mine", "recognise"]

FORMS: tuple[type[Form], ...] = (Sdnq, ScaledFp8, GgufTypes, Plain)
# What may lie beside a weight and says nothing about it: hints for activations, which are not quantized here.
_IGNORED = ("input_scale", "scale_input", "scale_output", "output_scale")


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
    raise EncoderError("form.unknown", file=layer.file.name, layer=layer.path, form=title, why=why)
