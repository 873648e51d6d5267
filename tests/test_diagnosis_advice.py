"""What general rules conclude from what is installed: which package, to what, and why."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sd3deploy.deps import host_packages
from sd3deploy.diagnosis import advice, matcher
from sd3deploy.diagnosis.families import names, native
from sd3deploy.diagnosis.installed import STACK, Installed
from sd3deploy.diagnosis.knowledge import packages
from sd3deploy.diagnosis.rule import NOTHING, Seen
from sd3deploy.vendored import SpecifierSet, canonicalize_name
from tests.test_diagnosis_knowledge import EXCERPTS, parsed

SITE = "/sd/venv/lib/python3.11/site-packages"
MINE = {rule.id for rule in packages.RULES} | set(names.KINDS) | set(native.KINDS)
OURS = [path for path in EXCERPTS if path.parent.name in MINE and path.name.startswith("match")]


def installed(versions="", pins="", requires=None, **more):
    pairs = lambda text: {canonicalize_name(name): one for name, one in (part.split("==") for part in text.split())}  # noqa: E731
    return Installed(
        pairs(versions), requires or {}, pairs(pins), host_packages(), "3.11.7", more.pop("executable", "/sd/venv/bin/python"), **more
    )


def frames(*tops):
    return "Traceback (most recent call last): " + " ".join(f'File "{SITE}/{top}/module.py", line 1, in <module>' for top in tops)


def test_a_module_that_nobody_knows_is_missing():
    found = advice.missing_module({"module": "bitsandbytes"}, Seen())
    assert (found.package, found.cause, found.action) == ("bitsandbytes", "missing-package", "install")


def test_a_module_that_the_log_has_seen_installed_is_not_missing():
    found = advice.missing_module({"module": "bitsandbytes"}, Seen(installs={"bitsandbytes": ""}))
    assert (found.cause, found.action) == ("stale-availability", "refresh")


def test_a_module_that_is_there_was_looked_for_too_early():
    found = advice.missing_module({"module": "bitsandbytes"}, Seen(installed("bitsandbytes==0.50.2"), text=frames("transformers")))
    assert (found.cause, found.action) == ("stale-availability", "refresh")


def test_a_module_that_another_python_lacks():
    text = 'Traceback (most recent call last): File "/usr/lib/python3/dist-packages/diffusers/a.py", line 1, in <module>'
    found = advice.missing_module({"module": "accelerate"}, Seen(installed("accelerate==1.14.0"), text=text))
    assert found.cause == "wrong-interpreter"
    assert found.values["elsewhere"] == "/usr/lib/python3/dist-packages"


@pytest.mark.parametrize(
    ("executable", "folder"),
    [
        (r"C:\sd\venv\Scripts\python.exe", r"C:\\sd\\venv\\Lib\\site-packages"),
        (r"C:\sd\venv\Scripts\python.exe", r"c:\SD\venv\lib\site-packages"),
        (r"C:\comfy\python_embeded\python.exe", r"C:\comfy\python_embeded\Lib\site-packages"),
        ("/usr/bin/python3", "/usr/local/lib/python3.10/dist-packages"),
        ("/usr/bin/python3", "/home/anna/.local/lib/python3.10/site-packages"),
        ("/sd/venv/bin/python", r"C:\elsewhere\Lib\site-packages"),  # the log of another machine
        ("", "/usr/lib/python3/dist-packages"),
    ],
)
def test_what_is_not_another_python(executable, folder):
    text = f'Traceback (most recent call last): File "{folder}/diffusers/a.py", line 1, in <module>'
    found = advice.missing_module({"module": "accelerate"}, Seen(installed("accelerate==1.14.0", executable=executable), text=text))
    assert found.cause == "stale-availability"


def test_another_python_does_not_matter_where_the_log_shows_the_install():
    text = 'Traceback (most recent call last): File "/usr/lib/python3/dist-packages/diffusers/a.py", line 1, in <module>'
    found = advice.missing_module({"module": "accelerate"}, Seen(installed("accelerate==1.14.0"), {"accelerate": ""}, text))
    assert found.cause == "stale-availability"


@pytest.mark.parametrize("module", ["basicsr", "cv2", "dynamicprompts.wildcards", "modules.shared"])
def test_modules_of_others_are_no_failure(module):
    assert advice.missing_module({"module": module}, Seen()) is None


def test_what_most_machines_lack_is_a_failure_only_where_something_needs_it():
    assert advice.missing_module({"module": "xformers"}, Seen(text="Cannot import xformers: No module named 'xformers'")) is None
    assert advice.missing_module({"module": "xformers"}, Seen(text=frames("diffusers"))).package == "xformers"


def test_triton_has_another_name_on_windows():
    found = advice.missing_module({"module": "triton"}, Seen(installed(system="Windows"), text=frames("xformers")))
    assert found.values["target"] == "triton-windows"
    for brings in ("triton-windows", "pytorch-triton-rocm"):
        known = replace(installed(f"{brings}==3.5.0"), modules={"triton": (brings,)})
        there = advice.missing_module({"module": "triton"}, Seen(known, text=frames("xformers")))
        assert (there.cause, there.package) == ("stale-availability", brings)


def test_a_compiled_part_that_is_missing_is_a_broken_installation():
    seen = Seen(installed("pydantic-core==2.46.4"), text=frames("pydantic_core"))
    assert advice.missing_module({"module": "pydantic_core._pydantic_core"}, seen).cause == "mixed-package-files"


def test_a_part_that_other_versions_have_is_not_installed_but_updated():
    found = advice.missing_module({"module": "diffusers.pipelines.stable_diffusion_3"}, Seen(installed("diffusers==0.27.2"), text=frames()))
    assert (found.package, found.cause) == ("diffusers", "moved-name")
    pinned = installed("diffusers==0.27.2", "diffusers==0.39.0")
    found = advice.missing_module({"module": "diffusers.pipelines.stable_diffusion_3"}, Seen(pinned, text=frames("diffusers")))
    assert (found.package, found.cause, found.values["target"]) == ("diffusers", "version-too-old", "diffusers==0.39.0")


def test_protobuf_is_found_behind_google():
    found = advice.missing_module({"module": "google.protobuf"}, Seen(installed("transformers==5.13.0")))
    assert (found.package, found.cause) == ("protobuf", "missing-package")


def moved(name, module, versions="", pins="", text=None, **more):
    return advice.moved_name({"name": name, "module": module}, Seen(installed(versions, pins, **more), text=text or frames("peft")))


def test_a_name_that_an_old_version_lacks():
    found = moved("clear_device_cache", "accelerate.utils.memory", "accelerate==0.31.0 peft==0.15.2")
    assert (found.package, found.cause, found.action) == ("accelerate", "version-too-old", "install")
    assert found.values["target"] == "accelerate>=0.32"


def test_the_pin_of_the_host_is_preferred():
    found = moved("clear_device_cache", "accelerate.utils.memory", "accelerate==0.31.0 peft==0.15.2", "accelerate==1.14.0")
    assert (found.package, found.values["target"]) == ("accelerate", "accelerate==1.14.0")


def test_a_name_that_a_new_version_has_dropped_is_the_fault_of_who_asks():
    found = moved("HybridCache", "transformers", "transformers==5.13.0 peft==0.15.2", "transformers==5.13.0")
    assert (found.package, found.cause, found.action) == ("peft", "moved-name", "install")
    back = moved("HybridCache", "transformers", "transformers==5.13.0 peft==0.15.2", "transformers==5.13.0 peft==0.19.1")
    assert (back.package, back.cause, back.values["pin"]) == ("peft", "foreign-downgrade", "0.19.1")


def test_a_name_that_was_dropped_comes_back_with_the_pin():
    found = moved("Undefined", "pydantic.fields", "pydantic==2.7.1 fastapi==0.94.0", "pydantic==1.10.15", frames("fastapi"))
    assert (found.package, found.cause, found.values["target"]) == ("pydantic", "foreign-downgrade", "pydantic==1.10.15")


def test_a_name_that_the_version_on_disk_has_needs_a_restart():
    found = moved("StableDiffusion3Pipeline", "diffusers", "diffusers==0.39.0")
    assert (found.cause, found.action) == ("stale-availability", "restart")


def test_an_extension_that_asks_for_the_past_is_the_one_to_change():
    text = 'Traceback (most recent call last): File "/sd/extensions/sd-old/scripts/old.py", line 1, in <module>'
    found = moved("HfFolder", "huggingface_hub", "huggingface_hub==1.23.0", "huggingface_hub==1.23.0", text)
    assert (found.package, found.action, found.values["asker"]) == ("huggingface_hub", "none", "sd-old")


def test_what_a_package_says_that_it_needs_decides():
    requires = {"transformers": ("huggingface-hub<2.0,>=1.5.0",)}
    found = moved("new", "huggingface_hub", "huggingface_hub==0.36.0 transformers==5.13.0", requires=requires, text=frames("transformers"))
    assert (found.package, found.cause) == ("huggingface-hub", "version-too-old")
    above = moved("old", "huggingface_hub", "huggingface_hub==2.0.0 transformers==5.13.0", requires=requires, text=frames("transformers"))
    assert (above.package, above.cause) == ("huggingface-hub", "version-too-new")


def test_what_the_host_itself_contradicts_is_nobodys_fault():
    requires = {"gradio": ("pydantic<2",)}
    stack = "gradio==3.43.2 pydantic==2.13.4"
    found = moved("thing", "pydantic", stack, stack, frames("gradio"), requires=requires)
    assert found.cause == "moved-name"


def test_a_package_of_the_host_that_was_moved_is_put_back():
    found = moved(
        "new", "transformers", "transformers==4.41.0 diffusers==0.39.0", "transformers==5.13.0 diffusers==0.39.0", frames("diffusers")
    )
    assert (found.package, found.cause, found.values["pin"]) == ("transformers", "foreign-downgrade", "5.13.0")


def test_names_of_others_are_no_failure():
    assert moved("soft_unicode", "markupsafe", text=frames("jinja2")) is None


@pytest.mark.parametrize(
    ("there", "versions", "cause"),
    [
        (None, ">=1.1", "missing-package"),
        ("0.26.0", ">=1.1", "version-too-old"),
        ("2.0.0", ">=1.1,<2", "version-too-new"),
        ("1.14.0", ">= 1.1", "stale-availability"),
        ("1.14.0.dev0", ">=1.1", "stale-availability"),
        ("1.14.0", "", "stale-availability"),
    ],
)
def test_a_requirement(there, versions, cause):
    seen = Seen(installed(f"accelerate=={there}" if there else ""))
    found = advice.required({"needed": "accelerate", "versions": versions}, seen)
    assert (found.package, found.cause) == ("accelerate", cause)


def test_a_requirement_that_the_text_itself_contradicts():
    values = {"needed": "huggingface-hub", "versions": ">=0.34.0,<1.0", "found": "1.2.3"}
    assert advice.required(values, Seen()).cause == "version-too-new"


def test_a_requirement_that_the_host_does_not_want_is_not_forced():
    seen = Seen(installed("numpy==2.1.2", "numpy==2.1.2"))
    found = advice.required({"needed": "numpy", "versions": "<2"}, seen)
    assert (found.package, found.action, found.sentence) == ("numpy", "none", "advice.host-behind")


def test_where_the_host_is_right_the_one_that_asks_has_been_moved():
    seen = Seen(installed("huggingface_hub==1.23.0 transformers==4.57.6", "huggingface_hub==1.23.0 transformers==5.13.0"))
    found = advice.required({"needed": "huggingface-hub", "versions": "<1.0", "asker": "transformers"}, seen)
    assert (found.package, found.cause, found.values["target"]) == ("transformers", "foreign-downgrade", "transformers==5.13.0")


def test_torch_is_never_left_to_pip():
    found = advice.required({"needed": "torch", "versions": ">=2.4"}, Seen(installed("torch==2.2.1+cu121")))
    assert (found.package, found.cause, found.action) == ("torch", "version-too-old", "restart")


def test_a_log_that_shows_the_install_explains_the_rest():
    found = advice.quantization({}, Seen(NOTHING, {"bitsandbytes": ""}, BOTH))
    assert (found.package, found.cause) == ("bitsandbytes", "stale-availability")
    other = advice.quantization({}, Seen(NOTHING, {"accelerate": ""}, BOTH))
    assert (other.package, other.cause) == ("bitsandbytes", "missing-package")


BOTH = (
    "Using `bitsandbytes` 8-bit quantization requires Accelerate: `pip install accelerate` and the latest version of bitsandbytes:"
    " `pip install -i https://pypi.org/simple/ bitsandbytes`"
)


@pytest.mark.parametrize(
    ("versions", "device", "package", "cause"),
    [
        ("transformers==4.41.2 torch==2.3.0+cu121", "cuda", "accelerate", "missing-package"),
        ("transformers==4.41.2 torch==2.3.0+cu121 accelerate==0.31.0", "cuda", "bitsandbytes", "missing-package"),
        ("transformers==4.41.2 torch==2.3.0+cu121 accelerate==0.31.0 bitsandbytes==0.43.1", "cuda", "bitsandbytes", "stale-availability"),
        ("transformers==4.41.2 torch==2.3.0+cpu accelerate==0.31.0 bitsandbytes==0.43.1", "", "bitsandbytes", "platform-unsupported"),
        ("transformers==4.41.2 torch==2.3.0 accelerate==0.31.0 bitsandbytes==0.43.1", "mps", "bitsandbytes", "platform-unsupported"),
        ("transformers==5.13.0 torch==2.13.0+cpu accelerate==1.14.0 bitsandbytes==0.50.2", "cpu", "bitsandbytes", "stale-availability"),
    ],
)
def test_quantization_looks_at_the_device_before_it_blames_the_package(versions, device, package, cause):
    found = advice.quantization({}, Seen(installed(versions, device=device), text=BOTH))
    assert (found.package, found.cause) == (package, cause)


def test_pip_conflicts_that_are_over_or_wanted_are_quiet():
    text = "gradio 3.43.2 requires pydantic<2,>=1, but you have pydantic 2.13.4 which is incompatible."
    assert advice.conflict({}, Seen(text=text)).package == "pydantic"
    assert advice.conflict({}, Seen(installed("pydantic==1.10.15"), text=text)) is None
    assert advice.conflict({}, Seen(installed("gradio==3.43.2 pydantic==2.13.4", "gradio==3.43.2 pydantic==2.13.4"), text=text)) is None
    moved_away = installed("gradio==3.43.0 pydantic==2.13.4", "gradio==3.43.2 pydantic==2.13.4")
    assert advice.conflict({}, Seen(moved_away, text=text)).package == "gradio"


def test_the_host_wants_another_version_only_while_it_does():
    values = {"needed": "numpy", "found": "1.26.4", "pin": "2.1.2"}
    assert advice.wrong_version(values, Seen(installed("numpy==1.26.4"))).cause == "foreign-downgrade"
    assert advice.wrong_version(values, Seen(installed("numpy==2.1.2"))) is None
    assert advice.wrong_version({**values, "needed": "tqdm"}, Seen()) is None


@pytest.mark.parametrize(
    ("rest", "package"), [("-umpy", "numpy"), ("~umpy", "numpy"), ("~-mpy", "numpy"), ("-itsandbytes", "bitsandbytes"), ("-orch", "torch")]
)
def test_what_pip_leaves_behind_lacks_letters(rest, package):
    assert advice.leftover({"rest": rest}, Seen()).package == package


@pytest.mark.parametrize("rest", ["-", "~omfyui-frontend-package", "-ip"])
def test_what_pip_leaves_of_others_is_no_failure(rest):
    assert advice.leftover({"rest": rest}, Seen()) is None


def test_an_argument_that_is_not_known_is_the_fault_of_what_was_moved():
    values = {"function": "T5EncoderModel.__init__", "name": "dtype"}
    seen = Seen(
        installed("transformers==4.50.0 diffusers==0.39.0", "transformers==5.13.0 diffusers==0.39.0"),
        text=frames("diffusers", "transformers"),
    )
    found = advice.unexpected_argument(values, seen)
    assert (found.package, found.cause) == ("transformers", "foreign-downgrade")
    assert advice.unexpected_argument(values, Seen(text=frames("cv2"))) is None


def environments():
    """Hosts that pin everything, in which everything is old, is new, or is as wanted."""
    names = sorted(name for name in STACK if name != "triton-windows")
    for there, pin in (("0.0.1", "3.0.0"), ("99.0", "3.0.0"), ("3.0.0", "3.0.0"), ("0.0.1", "0.0.1")):
        yield Installed(dict.fromkeys(names, there), {}, dict.fromkeys(names, pin), host_packages(), "3.11.7", "/sd/venv/bin/python")
    yield Installed({}, {}, dict.fromkeys(names, "3.0.0"), host_packages(), "3.11.7", "/sd/venv/bin/python")
    yield Installed(dict.fromkeys(names, "0.0.1"), {}, {}, host_packages(), "3.11.7", "/sd/venv/bin/python")


@pytest.mark.parametrize("path", OURS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_nobody_is_told_to_move_what_the_host_pins_without_being_told_so(path):
    for there in environments():
        for found in matcher.read([parsed(path)[1]], lambda there=there: there):
            if found.rule not in MINE:
                continue
            if found.action == "install" and found.package and there.belongs_to_host(found.package):
                assert "belongs to SD.Next" in found.remedy
            for name, versions in re.findall(
                r"pip install --no-deps(?: --upgrade)? \"?([\w.\-]+?)((?:[<>=!~]=?[\w.*]+,?)*)\"?(?=[\s.,]|$)", found.remedy
            ):
                pin = there.pin(name)
                if pin and versions:
                    assert SpecifierSet(versions).contains(pin) or "In another program" in found.remedy, found.remedy


@pytest.mark.parametrize("path", OURS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_remedy_is_complete_whatever_is_installed(path):
    for there in (None, *environments()):
        for found in matcher.read([parsed(path)[1]], lambda there=there: there):
            assert found.message
            assert found.remedy
            assert "{" not in found.message + found.remedy
            assert "  " not in found.message + found.remedy
            assert " ?" not in found.message


def test_pip_is_always_asked_without_dependencies():
    sentences = [found.remedy for path in OURS for found in matcher.read([parsed(path)[1]])]
    commands = [command for text in sentences for command in re.findall(r"-m pip install[^,.]*", text)]
    assert commands
    assert all("--no-deps" in command for command in commands)
