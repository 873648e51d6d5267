"""Samplers, steps and guidance: SD3 predicts flows, and a sampler that does not match them makes noise."""

from __future__ import annotations

from sd3deploy.guards.finding import Finding, finding
from sd3deploy.guards.job import Job
from sd3deploy.guards.number import number

__all__ = ["check", "matches_flow"]

# diffusers' defaults for SD3 (its pipeline_stable_diffusion_3.py); the distilled one: model card of stable-diffusion-3.5-large-turbo.
_STEPS, _STEPS_TURBO = 28, 4
_GUIDANCE, _GUIDANCE_TURBO = 7.0, 1.0
_GUIDANCE_MOST = 30.0  # the end of SD.Next's slider
# SD.Next's samplers without “FlowMatch” in their names that it redirects to one with it, and the one with it that it can not use:
# its scheduler takes no sigmas (all 110 were tried on SD.Next of 2026-07).
_REDIRECTED = {"euler", "unipc", "lcm", "er-sde", "er-sde 2m", "er-sde 3m"}
_UNUSABLE = {"heun flowmatch"}


def matches_flow(name: str) -> bool:
    """Whether SD.Next can use a sampler with SD3, by its name: for whoever has no running host to ask."""
    name = name.strip().lower()
    if name in ("", "none", "default", "same as primary") or name in _REDIRECTED:
        return True
    return name.endswith("flowmatch") and name not in _UNUSABLE


def check(job: Job) -> tuple[Finding, ...]:
    """Findings about samplers, steps and guidance of the job."""
    fields = ("sampler", "hires_sampler") if job.hires else ("sampler",)
    found = []
    for name in dict.fromkeys(getattr(job, field) for field in fields):
        if name in job.not_flow:
            change = {field: "Default" for field in fields if getattr(job, field) == name}
            found.append(finding("warning", "sampler.not-flow", change, name=name))
    steps = number(job.steps)
    if steps is None or steps < 1:
        usual = _STEPS_TURBO if job.model.turbo else _STEPS
        found.append(finding("warning", "steps.none", {"steps": usual}, steps=_shown(job.steps), usual=usual))
    guidance = number(job.guidance)
    usual = _GUIDANCE_TURBO if job.model.turbo else _GUIDANCE
    if guidance is None or guidance > _GUIDANCE_MOST:
        found.append(finding("warning", "guidance.absurd", {"guidance": usual}, guidance=_shown(job.guidance), usual=usual))
    elif job.model.turbo and guidance > 2:
        found.append(finding("advice", "guidance.turbo", offer={"guidance": usual}, guidance=_shown(job.guidance)))
    elif not job.model.turbo and 0 <= guidance <= 1:
        found.append(finding("advice", "guidance.none", offer={"guidance": usual}, guidance=_shown(job.guidance)))
    return tuple(found)


def _shown(value: object) -> str:
    found = number(value)
    return str(value)[:40] if found is None else f"{found:g}"
