"""Names that moved: which versions of a package have them.

Each bound was looked up in the wheels on PyPI, in November 2026: the last version without the name, the first one with it (or the other way
round), and the newest. numpy's and Pillow's, which make their names as they run, were imported; the others were read with `ast`: a name
counts where it can be imported from its module. torch is too large for that and was looked up in the documentation of its versions
instead, which holds the source of its modules (https://github.com/pytorch/docs and https://github.com/pytorch/pytorch.github.io), and in
reports of people who had the version below. tests/test_diagnosis_names.py says which module is meant, and compares with what is installed.

A name that went away has no lower bound, even where very old versions did not have it yet. That the oldest has it is how `cure` knows that
it went away, so that whoever asks for it has to change, and not its package.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["NAMES"]

# (distribution, name) → the versions that have the name, as a PEP 440 specifier.
NAMES: Mapping[tuple[str, str], str] = {
    # in 0.25.2, not in 0.26.0; in 0.36.2, not in 1.0.0; not in 0.20.3, 1.2.0 and 0.26.5, in 0.21.0, 1.2.1 and 0.27.0; the same in 2.4.0
    ("huggingface-hub", "cached_download"): "<0.26",
    ("huggingface-hub", "HfFolder"): "<1.0",
    ("huggingface-hub", "Repository"): "<1.0",
    ("huggingface-hub", "split_torch_state_dict_into_shards"): ">=0.21",
    ("huggingface-hub", "is_offline_mode"): ">=1.2.1",
    ("huggingface-hub", "DDUFEntry"): ">=0.27",
    # not in 4.42.4, in 4.43.0; in 4.57.6, not in 5.0.0; not in 4.35.2, in 4.36.0; the same in 5.24.0
    ("transformers", "EncoderDecoderCache"): ">=4.43",
    ("transformers", "HybridCache"): "<5",
    ("transformers", "FLAX_WEIGHTS_NAME"): "<5",
    ("transformers", "CLIPFeatureExtractor"): "<5",
    ("transformers", "cache_utils"): ">=4.36",
    # not in 0.31.0, in 0.32.0; still in 1.15.0
    ("accelerate", "clear_device_cache"): ">=0.32",
    # not in 0.28.2, 0.29.0, 0.29.2, 0.30.3, 0.31.0, 0.32.2 and 0.33.1, each in the next version; all still in 0.42.1
    ("diffusers", "StableDiffusion3Pipeline"): ">=0.29",
    ("diffusers", "StableDiffusion3Img2ImgPipeline"): ">=0.29",
    ("diffusers", "SD3Transformer2DModel"): ">=0.29",
    ("diffusers", "FlowMatchEulerDiscreteScheduler"): ">=0.29",
    ("diffusers", "SD3ControlNetModel"): ">=0.29.1",
    ("diffusers", "StableDiffusion3ControlNetPipeline"): ">=0.29.1",
    ("diffusers", "StableDiffusion3InpaintPipeline"): ">=0.30",
    ("diffusers", "StableDiffusion3ControlNetInpaintingPipeline"): ">=0.31",
    ("diffusers", "stable_diffusion_3"): ">=0.29",
    ("diffusers", "BitsAndBytesConfig"): ">=0.31",
    ("diffusers", "GGUFQuantizationConfig"): ">=0.32",
    ("diffusers", "TorchAoConfig"): ">=0.32",
    ("diffusers", "QuantoConfig"): ">=0.33",
    ("diffusers", "PipelineQuantizationConfig"): ">=0.34",
    # By documentation, see above. torch.library: its source of 2.3 has none of these, the pages of 2.4 have all three
    # (and https://github.com/huggingface/diffusers/pull/12206)
    ("torch", "custom_op"): ">=2.4",
    ("torch", "register_autograd"): ">=2.4",
    ("torch", "register_fake"): ">=2.4",
    # https://github.com/huggingface/transformers/pull/31573; not among the modules of 2.2, but of 2.3
    ("torch", "xpu"): ">=2.3",
    # 2.0.1 lacks it: https://github.com/TMElyralab/MuseTalk/issues/403; its source is in the pages of 2.1
    ("torch", "compiler"): ">=2.1",
    # 2.0.1 lacks it: https://github.com/kylesargent/ZeroNVS/issues/35; https://github.com/huggingface/accelerate/pull/2945
    ("torch", "float8_e4m3fn"): ">=2.1",
    # 2.2.1 lacks it, 2.3.0 has it: https://github.com/pytorch/pytorch/issues/126632
    ("torch", "get_default_device"): ">=2.3",
    # 2.3.1 lacks it: https://github.com/QwenLM/Qwen3-VL/issues/12; it has a page in 2.4
    ("torch", "RMSNorm"): ">=2.4",
    # 2.5.1 lacks it: https://github.com/pytorch/tutorials/issues/3621; it has a page in 2.6
    ("torch", "accelerator"): ">=2.6",
    # torch.nn.attention; 2.2.1 lacks it: https://github.com/fishaudio/fish-speech/issues/441; it has a page in 2.3
    ("torch", "attention"): ">=2.3",
    # 2.4.0 lacks it: https://github.com/meta-pytorch/torchtune/issues/2253; it has a page in 2.5
    ("torch", "flex_attention"): ">=2.5",
    # not in the table of dtypes of 2.2, but of 2.3; safetensors (its torch.py) counts on them from 2.3.0 on
    ("torch", "uint16"): ">=2.3",
    ("torch", "uint32"): ">=2.3",
    ("torch", "uint64"): ">=2.3",
    # 1.10.27 and 2.0; the same in 2.14.4
    ("pydantic", "Undefined"): "<2",
    ("pydantic", "ModelField"): "<2",
    ("pydantic", "BaseSettings"): "<2",
    ("pydantic", "field_validator"): ">=2",
    ("pydantic", "TypeAdapter"): ">=2",
    # not in 0.38.1, in 0.39.0 and 0.50.2
    ("bitsandbytes", "Linear4bit"): ">=0.39",
    ("bitsandbytes", "Params4bit"): ">=0.39",
    # 1.23.5 and 1.24.0; 1.26.4 and 2.0.0; 1.26.0 and 1.26.1; the same in 2.4.6. bool came back with 2.0.0, as another thing
    ("numpy", "float_"): "<2",
    ("numpy", "complex_"): "<2",
    ("numpy", "string_"): "<2",
    ("numpy", "product"): "<2",
    ("numpy", "bool"): "!=1.24.*,!=1.25.*,!=1.26.*",
    ("numpy", "float"): "<1.24",
    ("numpy", "int"): "<1.24",
    ("numpy", "object"): "<1.24",
    ("numpy", "_core"): ">=1.26.1",
    # not in 5.26.1 and 4.25.9, in 5.27.0; not in 3.19.6, in 3.20.0; both in 7.36.2
    ("protobuf", "runtime_version"): ">=5.27",
    ("protobuf", "builder"): ">=3.20",
    # 9.5.0 and 10.0.0; the same in 13.0.0
    ("pillow", "ANTIALIAS"): "<10",
    ("pillow", "LINEAR"): "<10",
    # in 0.16.2, not in 0.17.0 nor 0.29.0
    ("torchvision", "functional_tensor"): "<0.17",
}
