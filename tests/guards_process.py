"""Run by test_guards_versions.py in environments with other versions of diffusers: the transformer alone, without any pipeline."""

from __future__ import annotations

import inspect
import sys
import types

import diffusers
import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models import attention_processor as processors

from sd3deploy import tiny_sd3
from sd3deploy.guards import attention


def run(transformer: SD3Transformer2DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, prompt, pooled = (torch.randn(*shape, generator=generator) for shape in ((4, 16, 8, 8), (4, 5, 128), (4, 96)))
    with torch.no_grad():
        return transformer(latents, prompt, pooled, torch.full((4,), 500.0), return_dict=False)[0]


def main() -> None:
    assert diffusers.__version__ == sys.argv[1], diffusers.__version__
    known = inspect.signature(SD3Transformer2DModel.__init__).parameters
    shapes = [{}, {"qk_norm": "rms_norm"}, {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}]
    tried = [shape for shape in shapes if shape.keys() <= known.keys()]  # SD3.5 came with 0.31
    for shape in tried:
        model = types.SimpleNamespace(transformer=SD3Transformer2DModel(**tiny_sd3.TRANSFORMER | shape).eval())
        assert attention.find_misfits(model) == ()
        before = run(model.transformer)
        for kind in (processors.AttnProcessor, processors.AttnProcessor2_0):
            model.transformer.set_attn_processor(kind())
            with pytest.raises(ValueError, match=r"too many values to unpack \(expected 2"):
                run(model.transformer)
            found = attention.find_misfits(model)
            assert len([misfit for misfit in found if misfit.path.endswith(".attn")]) == 2, found
            attention.restore(model, tuple(misfit.path for misfit in found))
            assert attention.find_misfits(model) == ()
            assert torch.equal(run(model.transformer), before)
        for _, layer in attention.layers(model):
            layer.set_processor(processors.FusedJointAttnProcessor2_0())
        assert attention.find_misfits(model) == ()
    print(f"{diffusers.__version__}: {len(tried)} shapes, {type(attention._default()).__name__}")


if __name__ == "__main__":
    main()
