"""The prompts to measure with, and the tokens that Stable Diffusion 3 makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3deploy.encoders import tokenizer as t5
from sd3deploy.errors import EncoderError, SettingError
from sd3deploy.lazy import lazy

if TYPE_CHECKING:
    import torch

__all__ = ["LENGTH", "OWN", "Prompt", "read", "tokenized", "tokenizer", "varied"]

OWN = Path(__file__).with_name("prompts.txt")
LENGTH = 256  # tokens, to which each prompt is cut or padded: max_sequence_length of diffusers' StableDiffusion3Pipeline
_MOST = 2**20  # bytes of a file with prompts
_CLIP = 77  # tokens, which is all that CLIP sees of a prompt
_WRITING = lazy(r'["“]\w')


@dataclass(frozen=True)
class Prompt:
    """text: as it stands in the file. ids: LENGTH token ids. tokens: how many of them are no padding."""

    text: str
    ids: tuple[int, ...]
    tokens: int

    @property
    def key(self) -> str:
        """Hexadecimal, of its tokens: what is kept on disk tells nobody what was written."""
        return hashlib.sha256(" ".join(map(str, self.ids)).encode()).hexdigest()[:16]

    def tensor(self, device: str) -> torch.Tensor:
        """The ids [1, LENGTH]."""
        import torch

        return torch.tensor([self.ids], device=device)


def read(file: Path = OWN) -> list[str]:
    """One prompt a line, each once; an empty line is the empty prompt. Raises SettingError for a file that holds no such thing."""
    try:
        with open(file, "rb") as content:
            data = content.read(_MOST + 1)
        if len(data) > _MOST:  # before it is decoded: it may be cut in the middle of a letter
            raise SettingError("quality.prompts-large", file=file, most=_MOST // 2**20)
        text = data.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError, as is a name with a zero in it
        raise SettingError("quality.prompts-unreadable", file=file, error=error) from error
    if not text.strip():
        raise SettingError("quality.prompts-none", file=file)
    return list(dict.fromkeys(text.split("\n")))


def tokenizer(folders: Iterable[Path], vocabulary: int) -> Any:
    """T5's tokenizer of the first folder that has a usable one, in it or in a folder tokenizer_3. Raises EncoderError where none has."""
    found = t5.first(t5.local(folders), vocabulary)
    if found is None:
        raise EncoderError("quality.no-tokenizer")
    return found


def tokenized(texts: Iterable[str], tokenizer: Any) -> list[Prompt]:
    """As diffusers' pipeline: cut or padded to LENGTH, and the padding is seen. Those that are the same tokens come once."""
    found: dict[tuple[int, ...], Prompt] = {}
    for text in texts:
        made = tokenizer(text, padding="max_length", max_length=LENGTH, truncation=True)
        found.setdefault(tuple(made["input_ids"]), Prompt(text, tuple(made["input_ids"]), sum(made["attention_mask"])))
    return list(found.values())


def varied(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` of them, or all where they are fewer, in turn of each kind that asks something else of T5: plain words, words to be written
    in the picture, another language, more than CLIP sees. An empty one shows nothing and is passed over where there are others.
    """
    kinds: dict[str, list[Prompt]] = {"plain": [], "writing": [], "language": [], "long": []}
    for prompt in prompts:
        long, writing, plain = prompt.tokens > _CLIP, _WRITING.search(prompt.text), prompt.text.isascii()
        kinds["long" if long else "writing" if writing else "plain" if plain else "language"].append(prompt)
    kinds["plain"].sort(key=lambda prompt: not prompt.text.strip())
    turns = ([one[turn] for one in kinds.values() if turn < len(one)] for turn in range(len(prompts)))
    return [prompt for turn in turns for prompt in turn][:count]
