"""What a file says about its layers in words: small JSON beside a weight, or in the header."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders.stored import Stored
from sd3deploy.errors import EncoderError

if TYPE_CHECKING:
    import torch

__all__ = ["COMFY", "FORMAT", "STATE", "declared_of", "layers_declared"]

COMFY = "comfy_quant"  # ComfyUI's marker: UTF-8 JSON in a tensor of bytes (comfy/ops.py)
STATE = "weight.quant_state.bitsandbytes__"  # the same of bitsandbytes, then the kind (functional.py, QuantState.as_dict)
FORMAT = "weight_format"  # one byte (bitsandbytes/utils.py, LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING)
_METADATA = "_quantization_metadata"  # ComfyUI's markers in the header of the file (comfy/utils.py, convert_old_quants)
_LONGEST = 2**16  # bytes of a marker; real ones have some hundred


def layers_declared(metadata: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Path of a layer, prefix included → what the header says about it. Raises EncoderError for what can not be read."""
    text = metadata.get(_METADATA)
    if text is None:
        return {}
    found = _json(text, _METADATA, file)
    layers = found.get("layers")
    if found.get("format_version", "1.0") != "1.0" or not isinstance(layers, dict):
        raise EncoderError("form.declared-unreadable", file=file, tensor=_METADATA, error="its version is not known")
    return layers


def declared_of(parts: Mapping[str, Stored], header: Any, read: Callable[[Stored], torch.Tensor]) -> dict[str, Any] | None:
    """What is said about a layer: the marker's name → its content; None where there is none. header: what the file's header says.

    Markers of another type or of absurd size are not read; they are left over then. Raises EncoderError for what can not be read.
    """
    found: dict[str, Any] = {}
    for part, stored in parts.items():
        if stored.dtype != "U8" or stored.size > _LONGEST:
            continue
        if part == COMFY:
            found[COMFY] = _flat(_json(bytes(read(stored).numpy()), stored.key, stored.file.name), stored.key, stored.file.name)
        elif part.startswith(STATE):
            found[part] = _json(bytes(read(stored).numpy()), stored.key, stored.file.name)
        elif part == FORMAT and stored.size == 1:
            found[FORMAT] = int(read(stored)[0])
    if header is not None:
        file = next(iter(parts.values())).file.name
        if not isinstance(header, dict):
            raise EncoderError("form.declared-unreadable", file=file, tensor=_METADATA, error="a layer is no JSON object")
        said = _flat(header, _METADATA, file)
        # Editors write less into the header than into the marker (convert_to_quant, utils/comfy_quant.py): so the marker counts.
        marker = found.setdefault(COMFY, said)
        if any(marker[key] != value for key, value in said.items() if key in marker):
            raise EncoderError("form.declared-unreadable", file=file, tensor=_METADATA, error="it contradicts a marker")
    if len(found) > 1:
        stored = next(iter(parts.values()))
        raise EncoderError("form.declared-unreadable", file=stored.file.name, tensor=", ".join(sorted(found)), error="there are several")
    return found or None


def _flat(found: dict[str, Any], name: str, file: str) -> dict[str, Any]:
    """Older writers keep the numbers under "params"."""
    params = found.get("params")
    if params is None:
        return {key: value for key, value in found.items() if key != "params"}
    rest = {key: value for key, value in found.items() if key != "params"}
    if not isinstance(params, dict) or any(rest.get(key, value) != value for key, value in params.items()):
        raise EncoderError("form.declared-unreadable", file=file, tensor=name, error="its params contradict the rest")
    return {**params, **rest}


def _json(text: Any, name: str, file: str) -> dict[str, Any]:
    try:
        found = json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError:
        raise EncoderError("form.declared-unreadable", file=file, tensor=name, error="it is nested too deeply") from None
    except (ValueError, TypeError) as error:
        raise EncoderError("form.declared-unreadable", file=file, tensor=name, error=error) from error
    if not isinstance(found, dict):
        raise EncoderError("form.declared-unreadable", file=file, tensor=name, error="it is no JSON object")
    return found
