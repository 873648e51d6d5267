"""The text that goes into the image and into the API's answer."""

from modules import shared
from modules.infotext import quote


def create_infotext(p, all_prompts=None, all_seeds=None, index=0, **ignored):
    prompts, seeds = all_prompts or p.all_prompts or [p.prompt], all_seeds or p.all_seeds or [p.seed]
    te = shared.opts.sd_text_encoder
    fields = {
        "Steps": p.steps,
        "Size": f"{p.width}x{p.height}",
        "Sampler": p.sampler_name if p.sampler_name != "Default" else None,
        "Scheduler": shared.sd_model.scheduler.__class__.__name__,
        "Seed": seeds[min(index, len(seeds) - 1)],
        "CFG scale": p.cfg_scale,
        "App": "SD.Next",
        "Pipeline": shared.sd_model.__class__.__name__,
        "TE": te if te not in (None, "Default") else None,
        "Model": shared.sd_model.sd_checkpoint_info.model_name,
        "Operations": "; ".join(dict.fromkeys(p.ops)) or "none",
        **p.extra_generation_params,
    }
    line = ", ".join(f"{name}: {quote(value)}" for name, value in fields.items() if value is not None)
    negative = p.all_negative_prompts[0] if p.all_negative_prompts else p.negative_prompt
    return "\n".join([prompts[min(index, len(prompts) - 1)], *([f"Negative prompt: {negative}"] if negative else []), line])
