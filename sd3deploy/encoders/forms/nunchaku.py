"""Nunchaku's 4 bit for T5: AWQ in the order in which its kernels read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd3deploy.encoders.forms.form import Layer, Mine, NotMine
from sd3deploy.encoders.forms.scales import floats
from sd3deploy.encoders.stored import Decode, Stored

if TYPE_CHECKING:
    import torch

__all__ = ["Nunchaku"]

_GROUP = 128  # weights of a row that share a scale and a zero
_ROWS = 4  # that lie in one row of what is stored


@dataclass(frozen=True)
class Awq:
    """Weight = code · scale + zero (nunchaku-tech/nunchaku, models/text_encoders/tinychat_utils.py; the kernels add the zero)."""

    height: int
    width: int
    scales: Stored
    zeros: Stored
    name = "Nunchaku AWQ INT4"
    exact = False
    step = _ROWS

    def open(self, read: Callable[[Stored], torch.Tensor]) -> Decode:
        import torch

        groups = self.width // _GROUP
        scales, zeros = (
            floats(read(one), one.dtype).reshape(one.shape)[:groups].T.contiguous().unsqueeze(2) for one in (self.scales, self.zeros)
        )

        def decode(data: torch.Tensor, first: int, rows: int) -> torch.Tensor:
            words = data.view(torch.int16).reshape(rows // _ROWS, self.width // 64, _ROWS, 2, 1, 8)
            # Four numbers of a word are 8 columns apart. A shift of signed numbers brings ones from the left, which the mask takes away.
            codes = words.new_empty(rows // _ROWS, _ROWS, self.width // 64, 2, 4, 8, dtype=torch.float32)
            for place in range(4):
                codes[:, :, :, :, place] = ((words >> 4 * place) & 15).permute(0, 2, 1, 3, 4, 5).squeeze(4)
            numbers = codes.view(rows, groups, _GROUP)
            numbers.mul_(scales[first : first + rows]).add_(zeros[first : first + rows])
            return numbers.view(rows, self.width)

        return decode


class Nunchaku:
    """All linear layers in 4 bit, in words of four rows."""

    title = "Nunchaku AWQ INT4"
    example = "awq-int4-flux.1-t5xxl.safetensors (nunchaku-tech/nunchaku-t5)"
    read = True

    @staticmethod
    def look(layer: Layer) -> Mine | NotMine:
        stored, scales, zeros = (layer.parts.get(name) for name in ("qweight", "scales", "scaled_zeros"))
        if stored is None or scales is None or zeros is None:
            return NotMine("there are not qweight, scales and scaled_zeros", sum(one is not None for one in (stored, scales, zeros)))
        if stored.dtype != "I16" or len(stored.shape) != 2 or 0 in stored.shape:
            return NotMine(f"qweight is {stored.dtype} {list(stored.shape)}", 3)
        height, width = _ROWS * stored.shape[0], stored.shape[1]
        groups = -(-width // _GROUP // 8) * 8  # as many as the kernels want
        if width % _GROUP or layer.declared is not None:
            return NotMine(f"rows of {width} are no multiple of {_GROUP}", 3)
        if not (scales.dtype == zeros.dtype in ("F16", "BF16") and scales.shape == zeros.shape == (groups, height)):
            found = " and ".join(f"{one.dtype} {list(one.shape)}" for one in (scales, zeros))
            return NotMine(f"scales and scaled_zeros are {found} instead of {[groups, height]}", 4)
        return Mine(stored, (height, width), Awq(height, width, scales, zeros), frozenset({"qweight", "scales", "scaled_zeros"}))
