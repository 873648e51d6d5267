"""Containers of tensors: what a file is, by its first bytes, and what lies where in it. Nothing but its header is read.

A new one is a class, in a file of its own, and a line in CONTAINERS.
"""

from __future__ import annotations

from sd3deploy.encoders.containers import foreign
from sd3deploy.encoders.containers.content import Container, Content
from sd3deploy.encoders.containers.gguf import Gguf
from sd3deploy.encoders.containers.safetensors import Safetensors
from sd3deploy.encoders.containers.torch_zip import TorchZip
from sd3deploy.encoders.files import File
from sd3deploy.errors import EncoderError

__all__ = ["CONTAINERS", "Content", "open_content"]

CONTAINERS: tuple[type[Container], ...] = (Gguf, TorchZip, Safetensors)
_HEAD = 512  # bytes by which a file is told


def open_content(file: File) -> Content:
    """What lies in a file. Raises EncoderError for one that is damaged, or is no container of tensors, with what it is instead."""
    try:
        if file.path is not None and file.path.exists() and not file.path.is_file():
            raise ValueError("it is no file")  # a pipe would be waited for
        with file.open() as content:
            head = content.read(_HEAD)
        container = next((one for one in CONTAINERS if one.mine(head, file.name)), None)
        if container is None and (id := foreign.of_file(head, file.name)):
            raise EncoderError(id, file=file.name)
        return (container or Safetensors).read(file)  # which says what is wrong with it
    except (OSError, ValueError) as error:
        raise EncoderError("source.file-damaged", file=file.name, error=error) from error
