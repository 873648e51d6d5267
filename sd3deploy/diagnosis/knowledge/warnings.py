"""Rules about what nobody calls an error."""

from __future__ import annotations

from sd3deploy.diagnosis.rule import Rule

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        id="memory-spill",
        cause="memory-spill",
        match=r"\[Low GPU VRAM Warning\] If you continue|GPU fallback and test the 10x slower speed"
        r"|safe threshold ; This may cause extreme slow",
        action="setting",
        source="https://github.com/lllyasviel/stable-diffusion-webui-forge/issues/2464",
    ),
)
