"""What is to be made of T5's weights: everything that the result depends on, but for the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sd3deploy.encoders.choices import Choice
from sd3deploy.encoders.grouped import LAYOUT, WIDTHS

__all__ = ["EMBEDDING", "SCALES", "Recipe"]

EMBEDDING = "shared"  # its name in transformers' T5EncoderModel
SCALES = ("best", "absmax")


@dataclass(frozen=True)
class Recipe:
    """choice: of the table. compute: the type in which a layer is computed, and in which what is not quantized is kept. scale: of blocks
    in 4 bit: the best of several, or bitsandbytes' own. stock: keep `wo` wide, so that transformers' own class can read the result.
    """

    choice: Choice
    compute: str = "bfloat16"
    scale: str = "best"
    stock: bool = False

    @property
    def stored_wo(self) -> str:
        """How the second halves of the feed-forwards are stored."""
        return "wide" if self.stock else self.choice.stored_wo

    def stored(self, layer: str) -> str:
        """How the layer of that name is stored: the embedding, or a linear one."""
        return self.choice.stored_embedding if layer == EMBEDDING else self.stored_wo if layer.endswith(".wo") else self.choice.stored

    def settings(self) -> dict[str, Any]:
        """As JSON-able values."""
        kinds: dict[str, Any] = {"linear": self.choice.stored, "wo": self.stored_wo}
        if self.choice.stored_embedding != "wide":
            kinds["embedding"] = self.choice.stored_embedding
        if ours := WIDTHS.keys() & kinds.values():
            kinds["grouped"] = {kind: [*WIDTHS[kind], LAYOUT] for kind in sorted(ours)}
        return {"choice": self.choice.id, **kinds, "compute": self.compute, "scale": self.scale}
