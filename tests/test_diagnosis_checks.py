"""The checks on the real libraries, on real environments that lack something, and on real files that are damaged."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from demo.environment import linked, site_of
from sd3deploy import child, messages, tiny_sd3
from sd3deploy.deps import Requirement, State
from sd3deploy.deps.status import Status
from sd3deploy.device import Device
from sd3deploy.diagnosis import checks
from sd3deploy.diagnosis.checks import device, environment, files, imports, packages, probe, rehearsal, room, rules, weights
from sd3deploy.diagnosis.installed import Installed, read_installed
from sd3deploy.diagnosis.rule import CAUSES
from sd3deploy.encoders import choices
from sd3deploy.memory import capacity

ROOT = Path(__file__).parent.parent
NVIDIA = Device("cuda:0", "cuda", "NVIDIA GeForce RTX 3060", (8, 6), True, True)


KILLED = 1 if sys.platform == "win32" else -9  # how a child ends that is not left to end by itself


@pytest.fixture(scope="module")
def model():
    return tiny_sd3.ensure()


@pytest.fixture
def copy(model, tmp_path):
    """A models folder with a copy that a test may damage: its path."""
    return Path(shutil.copytree(model, tmp_path / "models" / "Diffusers" / "sd3"))


@pytest.fixture
def children(monkeypatch):
    """The children that a test has started."""
    started = []
    enter = child.Child.__enter__

    def entered(self):
        started.append(enter(self))
        return started[-1]

    monkeypatch.setattr(child.Child, "__enter__", entered)
    return started


def context(*models, **values):
    return checks.Context(models=tuple(models), **values)


def step(id):
    return next(one for one in checks.STEPS if one.id == id)


def only(id, about):
    (result,) = checks.run([step(id)], about)
    return result


def ids(findings):
    return [found.rule for found in findings]


# The whole of it


def test_all_steps_pass_on_this_machine_and_the_tiny_model(tmp_path):
    told, about = [], context(tmp_path / "nothing")
    results = list(checks.run(checks.STEPS, about, told.append))
    assert [one.id for one in results] == ["environment", "packages", "imports", "device", "files", "base", "encoder", "image"]
    assert {one.state for one in results} == {"ok"}, [(one.id, one.message) for one in results]
    assert all(one.healthy and one.message and not one.findings for one in results)
    facts = {one.id: one.facts for one in results}
    assert facts["base"]["made"]
    assert facts["encoder"]["encoder"] == "fp4"
    assert facts["encoder"]["linear4bit"] == facts["encoder"]["linears"] > 0
    assert facts["image"]["finite"]
    assert facts["image"]["deviation"] > 0.02
    assert json.loads(json.dumps([one.report() for one in results]))
    assert [checks.Result.of(one.report()) for one in results] == results
    assert {at.id for at in told} == {one.id for one in results}
    assert all(0 <= at.fraction <= 1 and at.total == 8 and at.title for at in told)
    assert about.held == {}


def test_a_model_of_the_user_is_taken(copy):
    results = list(checks.run(checks.RUN, context(copy.parents[1], encoder="none")))
    assert [one.state for one in results] == ["ok", "ok", "ok"]
    assert results[0].facts["model"] == str(copy)
    assert not results[0].facts["made"]


@pytest.mark.parametrize("encoder", [choice.id for choice in choices.CHOICES if choice.bytes])
def test_every_choice_can_be_tried(model, encoder):
    base, made, image = checks.run(checks.RUN, context(model=model, encoder=encoder))
    assert (base.state, made.state, image.state) == ("ok", "ok", "ok"), made
    assert made.facts["encoder"] == encoder


def test_another_encoder_where_the_chosen_one_does_not_run(model):
    bare = checks.Context(model=model, device="cpu", backend="cpu")
    bare.__dict__["installed"] = Installed({})  # no bitsandbytes
    _, made, image = checks.run(checks.RUN, bare)
    assert (made.state, image.state) == ("warning", "ok")
    assert made.facts["encoder"] == "q4"
    assert "T5 FP4" in made.message


# Needs, errors, cancelling


def test_what_needs_a_failed_step_is_skipped_and_says_so():
    def fails(about, say):
        raise RuntimeError("out of coffee")

    steps = [
        checks.Step("imports", fails),
        checks.Step("device", lambda about, say: checks.Outcome("ok", "")),
        checks.Step("base", fails, ("imports",)),
        checks.Step("image", fails, ("base", "never-asked-for")),
    ]
    results = list(checks.run(steps, context()))
    assert [one.state for one in results] == ["failed", "ok", "skipped", "skipped"]
    assert "out of coffee" in results[0].message
    assert ids(results[0].findings) == ["unknown"]
    assert checks.title("imports") in results[2].message
    assert checks.title("base") in results[3].message


def test_a_known_error_becomes_its_finding():
    def fails(about, say):
        raise ImportError(
            "cannot import name 'cached_download' from 'huggingface_hub' (/sd/venv/lib/site-packages/huggingface_hub/__init__.py)"
        )

    (result,) = checks.run([checks.Step("imports", fails)], context())
    assert result.state == "failed"
    assert result.findings
    assert "unknown" not in ids(result.findings)


def test_before_counts():
    failed = checks.Result("failed", "", id="imports", title="")
    assert {one.state for one in checks.run(checks.RUN, context(), before=[failed])} == {"skipped"}
    assert {one.state for one in checks.rehearse_in_child(context(), before=[failed])} == {"skipped"}


@pytest.mark.parametrize("after", range(4))
def test_after_cancelling_the_rest_is_cancelled(after):
    made = []

    def good(about, say):
        made.append(1)
        return checks.Outcome("ok", "")

    steps = [checks.Step(id, good) for id in ("environment", "packages", "imports")]
    results = list(checks.run(steps, context(), cancelled=lambda: len(made) >= after))
    assert [one.state for one in results] == ["ok"] * min(3, after) + ["cancelled"] * (3 - min(3, after))


@pytest.mark.parametrize("id", [one.id for one in checks.STEPS if one.id != "environment"])  # which is over in a moment
def test_every_step_can_be_cancelled_while_it_runs(id, copy, children):
    before = {"encoder": ["base"], "image": ["base"]}.get(id, [])
    calls = [0]

    def cancelled():
        return calls[0] >= 2

    def progress(at):
        calls[0] += at.id == id

    steps = [step(one) for one in [*before, id]]
    *_, last = checks.run(steps, context(copy.parents[1]), progress, cancelled)
    assert last.state == "cancelled"
    assert [one.code for one in children] == [KILLED] * (id in ("imports", "device"))  # it was not waited for


def test_ctrl_c_within_a_step_ends_the_run_in_order():
    def pressed(about, say):
        raise KeyboardInterrupt

    steps = [checks.Step("environment", pressed), checks.Step("packages", pressed)]
    assert [one.state for one in checks.run(steps, context())] == ["cancelled", "cancelled"]


def test_everything_is_let_go_when_nobody_takes_the_rest(model):
    about = context(model=model)
    running = checks.run(checks.RUN, about)
    next(running)
    assert "pipeline" in about.held
    running.close()
    assert about.held == {}
    assert about.cleanups == []


# Environment


def facts(**changes):
    site = environment.Folder(Path("/sd/venv/lib/site-packages"), 10**12, True)
    return replace(environment.Facts("3.12.3", ">=3.10,<3.14", True, True, site), **changes)


def test_a_good_environment_has_no_findings():
    assert environment.judge(facts()) == ([], [])


@pytest.mark.parametrize("python", ["3.9.18", "3.14.0", "3.15.0a1"])
def test_an_unsupported_python(python):
    failed, _ = environment.judge(facts(python=python))
    assert ids(failed) == ["python-unsupported"]
    assert python in failed[0].message


def test_the_python_of_the_system_is_only_a_warning():
    failed, warned = environment.judge(facts(virtual=False, owned=False))
    assert (ids(failed), ids(warned)) == ([], ["no-virtual-environment"])
    assert warned[0].action == "none"
    assert environment.judge(facts(virtual=False)) == ([], [])  # a container, conda


@pytest.mark.parametrize(("free", "level"), [(10**6, 0), (3 * 10**8, 1), (10**10, None)])
def test_little_space_for_packages(free, level):
    found = environment.judge(facts(site=environment.Folder(Path("/sd"), free, True)))
    assert [ids(one) for one in found] == [["disk-low"] if level == number else [] for number in (0, 1)]


def test_a_model_that_is_yet_to_come_needs_space():
    models = environment.Folder(Path("/sd/models"), 5 * 10**9, True)
    _, warned = environment.judge(facts(models=models, wanted=16 * 10**9))
    assert ids(warned) == ["disk-low"]
    assert "16.0 GB" in warned[0].message
    assert environment.judge(facts(models=models)) == ([], [])


def test_a_real_disk_that_is_full_and_read_only(tmp_path, monkeypatch):
    libc = ctypes.CDLL(None, use_errno=True)
    place = tmp_path / "models"
    place.mkdir()
    mounted = libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 1, b"size=4m") == 0  # 1: read-only
    if not mounted:  # only root may: then what the system would say
        monkeypatch.setattr(environment, "_read_only", lambda path: path == place)
        usage = shutil.disk_usage(place)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4_000_000 if path == place else usage.free))
    try:
        result = only("environment", context(place))
    finally:
        if mounted:
            libc.umount2(os.fsencode(place), 2)
    assert {"disk-low", "no-permission"} <= set(ids(result.findings))
    assert result.state == "failed"  # not even a setting could be written
    assert str(place) in result.message


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    result = only("environment", context(tmp_path))
    assert "no-permission" in ids(result.findings)
    assert "chown" in next(found.remedy for found in result.findings if found.rule == "no-permission")


# Packages


def installed(versions, requires=None, pins=None):
    return Installed(versions, requires or {}, pins or {}, frozenset(), "3.12.3", "/sd/venv/bin/python", "Linux")


def status(state, name="accelerate", specifier=">=1.1", there=None, loaded=None):
    return Status(Requirement(name, specifier), state, there, loaded, "a detail.")


@pytest.mark.parametrize(
    ("state", "id", "cause"),
    [
        (State.MISSING, "package-missing", "missing-package"),
        (State.TOO_OLD, "package-too-old", "version-too-old"),
        (State.TOO_NEW, "package-too-new", "version-too-new"),
        (State.BROKEN, "package-mixed", "mixed-package-files"),
        (State.STALE, "package-stale", "stale-availability"),
    ],
)
def test_states_of_requirements(state, id, cause):
    (found,) = packages.of_status(status(state, there="1.0", loaded="0.9"), installed({"accelerate": "1.0"}))
    assert (found.rule, found.cause, found.package) == (id, cause, "accelerate")
    assert "{" not in found.message + found.remedy
    if state in (State.MISSING, State.TOO_OLD):
        assert f'{sys.executable} -m pip install --no-deps "accelerate>=1.1"' in found.remedy
    if state is State.BROKEN:
        assert f"{sys.executable} -m sd3deploy doctor --fix" in found.remedy
    assert list(packages.of_status(status(State.OK), installed({}))) == []


def test_what_others_own_is_not_to_be_repaired_but_uninstalled_by_hand():
    shared = replace(status(State.BROKEN, there="1.0"), owners=("fork",))
    (found,) = packages.of_status(shared, installed({"accelerate": "1.0", "fork": "2.0"}))
    assert (found.rule, found.package) == ("package-mixed", "accelerate")
    assert found.message == "accelerate is left alone: its files belong to fork too. a detail."
    assert f"{sys.executable} -m pip uninstall -y fork accelerate" in found.remedy


def test_the_step_names_who_brings_a_module_and_who_shares_one(tmp_path):
    versions = {**read_installed().versions, "pillow-simd": "9.5.0.post2"}
    del versions["pillow"]
    modules = {"PIL": ("pillow_simd",), "cv2": ("opencv_python_headless", "opencv_python"), "tests": ("one", "other")}
    about = context(host_root=tmp_path)
    vars(about)["installed"] = replace(read_installed(), versions=versions, modules=modules)
    outcome = packages.check(about, lambda fraction, text: None)
    assert "pillow comes from pillow_simd 9.5.0.post2." in outcome.message
    assert (
        "opencv_python_headless, opencv_python bring the same module cv2; the files of opencv_python_headless are in use."
        in outcome.message
    )
    assert outcome.facts["brought"] == {"pillow": "pillow_simd 9.5.0.post2"}
    assert "tests" not in outcome.facts["shared"]
    assert not [one for one in outcome.findings if one.package in ("pillow", "Pillow", "opencv-python")]


def test_the_pin_of_the_host_counts_before_our_own_wish():
    (found,) = packages.of_status(status(State.TOO_OLD), installed({}, pins={"accelerate": "1.10.0"}))
    assert '"accelerate==1.10.0"' in found.remedy
    (found,) = packages.of_status(status(State.TOO_OLD), installed({}, pins={"accelerate": "0.30.0"}))  # which would not do
    assert '"accelerate>=1.1"' in found.remedy


def test_a_clash_is_laid_at_the_door_of_what_was_moved():
    there = installed(
        {"transformers": "5.13.0", "tokenizers": "0.19.1"},
        {"transformers": ("tokenizers>=0.22,<=0.23",)},
        {"transformers": "5.13.0", "tokenizers": "0.22.2"},
    )
    (found,) = packages.clashes(there)
    assert (found.rule, found.cause, found.package) == ("foreign-version", "foreign-downgrade", "tokenizers")
    assert '"tokenizers==0.22.2"' in found.remedy
    moved = replace(there, versions={"transformers": "4.40.0", "tokenizers": "0.22.2"}, requires={"transformers": ("tokenizers<0.20",)})
    (found,) = packages.clashes(moved)
    assert (found.package, "transformers==5.13.0" in found.remedy) == ("transformers", True)


def test_a_clash_that_the_host_lives_with_is_none():
    pins = {"numpy": "2.1.2", "accelerate": "1.2.0"}
    there = installed({"gradio": "3.43.2", **pins}, {"gradio": ("numpy~=1.0",), "accelerate": ("numpy<2",)}, pins)
    assert list(packages.clashes(there)) == []


def test_a_clash_without_pins_moves_what_is_needed_else_who_needs_it():
    requires = {"peft": ("accelerate>=0.21",), "diffusers": ("accelerate>=1.2",)}
    (found,) = packages.clashes(installed({"peft": "0.1", "diffusers": "0.39", "accelerate": "1.0"}, requires))
    assert (found.rule, found.cause, found.package) == ("package-clash", "version-too-old", "accelerate")
    assert '"accelerate>=0.21,>=1.2"' in found.remedy
    requires = {"tokenizers": ("huggingface-hub<1.0",), "transformers": ("tokenizers>=0.22,<=0.23",)}
    pins = {"transformers": "5.13.0", "huggingface-hub": "1.23.0"}
    (found, again) = packages.clashes(installed({**pins, "tokenizers": "0.19.1"}, requires, pins))
    assert found.package == again.package == "tokenizers"
    assert '"tokenizers<=0.23,>=0.22"' in found.remedy
    assert '"tokenizers<=0.23,>=0.22"' in again.remedy
    requires = {"bitsandbytes": ("torch<2.4",)}
    (found,) = packages.clashes(installed({"bitsandbytes": "0.40.0", "torch": "2.7.1"}, requires, {"torch": "2.7.1"}))
    assert (found.cause, found.package) == ("version-too-old", "bitsandbytes")
    assert "--upgrade --no-deps" in found.remedy


@pytest.mark.parametrize(
    ("there", "pin", "told"),
    [
        ("1.26.4", "2.1.2", True),
        ("2.1.1", "2.1.2", True),
        ("3.0.0", "2.1.2", True),
        ("2.3.0", "2.1.2", False),
        ("2.1.2", "2.1.2", False),
        ("2.1.2+cu128", "2.1.2", False),
    ],
)
def test_a_package_of_the_host_that_was_moved_without_a_clash(there, pin, told):
    found = list(packages.moved(installed({"numpy": there}, pins={"numpy": pin, "gradio": "3.43.2"})))
    assert [(one.rule, one.cause, one.package) for one in found] == [("foreign-version", "foreign-downgrade", "numpy")] * told


def run_in(python, *words, host=None):
    """`verify --quick` with another environment: its results by id."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "sd3deploy", "verify", "--quick", "--json", *words, *(["--host-root", str(host)] if host else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, {one["id"]: one for one in json.loads(done.stdout)["results"]}


def test_missing_packages(tmp_path):
    python = linked(tmp_path / "venv", without=["accelerate", "sentencepiece", "bitsandbytes"])
    code, found = run_in(python)
    assert code == 1
    rows = {one["package"]: one for one in found["packages"]["findings"]}
    assert rows.keys() == {"accelerate", "sentencepiece"}  # bitsandbytes is installed when somebody wants it
    assert rows["accelerate"]["cause"] == "missing-package"
    assert f'{python} -m pip install --no-deps "accelerate>=1.1"' in rows["accelerate"]["remedy"]
    assert found["packages"]["facts"]["absent"] == ["bitsandbytes"]
    assert found["imports"]["state"] == "failed"
    assert "accelerate" in found["imports"]["message"]
    assert found["imports"]["findings"] == []  # it comes of what the packages have said already
    assert found["device"]["state"] == "skipped"


def test_a_numpy_in_halves(tmp_path):
    python = linked(tmp_path / "venv", copied=["numpy"])
    site = site_of(tmp_path / "venv")
    for name in ("_core/shape_base.py", "_core/numeric.py", "lib/_stride_tricks_impl.py", "lib/stride_tricks.py"):
        (site / "numpy" / name).write_text("# of another version\n")
    shutil.copytree(next(site.glob("numpy-*.dist-info")), site / "numpy-1.26.4.dist-info")
    code, found = run_in(python)
    assert code == 1
    assert found["packages"]["state"] == "failed"
    assert [(one["rule"], one["package"]) for one in found["packages"]["findings"]] == [("package-mixed", "numpy")]
    assert "doctor --fix" in found["packages"]["remedy"]
    assert found["imports"]["state"] == "failed"


def test_a_bitsandbytes_that_does_not_compute(tmp_path):
    python = linked(tmp_path / "venv", copied=["bitsandbytes"])
    package = site_of(tmp_path / "venv") / "bitsandbytes"
    for library in package.glob("libbitsandbytes*"):
        library.write_bytes(b"")
    with open(package / "functional.py", "a") as file:
        file.write("\n\ndef quantize_4bit(*_, **__): raise RuntimeError('no library of this name')\n")
    _, found = run_in(python)
    assert [(one["rule"], one["package"]) for one in found["packages"]["findings"]] == [("package-mixed", "bitsandbytes")]
    assert found["imports"]["state"] == "ok"  # it hides that
    assert [(one["rule"], one["package"]) for one in found["device"]["findings"]] == [("bitsandbytes-native", "bitsandbytes")]
    assert "no library of this name" in found["device"]["message"]


def test_a_package_that_takes_the_process_down(tmp_path):
    python = linked(tmp_path / "venv", without=["peft"])
    (site_of(tmp_path / "venv") / "peft").mkdir()
    (site_of(tmp_path / "venv") / "peft" / "__init__.py").write_text("import os; os.abort()")
    (site_of(tmp_path / "venv") / "peft-9.dist-info").mkdir()
    (site_of(tmp_path / "venv") / "peft-9.dist-info" / "METADATA").write_text("Name: peft\nVersion: 9\n")
    (site_of(tmp_path / "venv") / "peft-9.dist-info" / "RECORD").write_text("peft/__init__.py,,\npeft-9.dist-info/METADATA,,\n")
    _, found = run_in(python)
    assert found["imports"]["state"] == "failed"
    assert [one["rule"] for one in found["imports"]["findings"]] == ["import-crash"]
    assert "peft" in found["imports"]["message"]
    assert any("peft" in line for line in found["imports"]["findings"][0]["evidence"])


def test_versions_that_the_host_does_not_want(tmp_path):
    root = tmp_path / "sdnext"
    root.mkdir()
    (root / "requirements.txt").write_text("transformers==4.40.0\nrich\n")
    (root / "constraints.txt").write_text("numpy==1.26.4\n")
    result = only("packages", context(host_root=root))
    assert result.state == "warning"
    assert {(one.rule, one.package) for one in result.findings} == {("foreign-version", "numpy"), ("foreign-version", "transformers")}


@pytest.mark.real
def test_a_healthy_sdnext_has_no_findings(tmp_path):
    root, real = os.environ.get("SDNEXT_ROOT"), os.environ.get("SDNEXT_PYTHON")
    if not root or not real:
        pytest.skip("needs SDNEXT_ROOT and SDNEXT_PYTHON")
    python = linked(tmp_path / "venv", source=Path(real).parent.parent)
    code, found = run_in(python, host=root)
    assert code == 0
    assert [one for result in found.values() for one in result["findings"]] == []


# Imports


def test_every_import_that_is_listed_works_here():
    written = []
    probe.imports(list(imports.IMPORTS), written.append)
    assert [one for one in written if one.get("error")] == []


def test_an_import_that_fails_is_told_with_its_traceback(monkeypatch):
    monkeypatch.setitem(imports.IMPORTS, "numpy", "raise SystemExit(3)")
    written = []
    probe.imports(["numpy", "safetensors"], written.append)
    assert "SystemExit" in written[1]["error"]
    assert written[3]["error"] == ""


# Device


def about_device(**values):
    build = {"torch": "2.13.0+cu130", "cuda": "13.0", "hip": None, "available": True}
    good = device.Facts(("NVIDIA GeForce RTX 3060",), "580.1", build, NVIDIA, capacity.card(12, 32), quantizes=True)
    return replace(good, **values)


CPU_BUILD = {"torch": "2.13.0+cpu", "cuda": None, "hip": None, "available": False}
CPU = Device("cpu", "cpu", "CPU")


@pytest.mark.parametrize(
    ("values", "failed", "warned"),
    [
        ({}, [], []),
        ({"build": CPU_BUILD, "device": CPU}, ["torch-without-gpu"], []),
        ({"build": CPU_BUILD, "device": CPU, "cards": ("AMD GPU",), "driver": ""}, [], ["torch-without-gpu"]),
        ({"build": CPU_BUILD, "device": CPU, "cards": (), "driver": ""}, [], []),
        ({"build": {**CPU_BUILD, "cuda": "12.8"}, "device": CPU}, ["driver-unusable"], []),
        ({"plain": "Traceback\nArithmeticError: mean nan"}, ["device-broken"], []),
        ({"four_bit": "Traceback\nArithmeticError: nf4: mean error nan"}, ["bitsandbytes-native"], []),
        ({"crash": -11, "capacity": None}, ["import-crash"], []),
        ({"device": replace(NVIDIA, capability=(5, 2))}, [], ["encoder-unsuitable"]),
        ({"device": replace(NVIDIA, backend="zluda")}, [], ["encoder-unsuitable"]),
    ],
)
def test_what_the_facts_about_a_device_mean(values, failed, warned):
    found = device.judge(about_device(**values), context())
    assert (ids(found[0]), ids(found[1])) == (failed, warned)
    for one in (*found[0], *found[1]):
        assert one.message
        assert one.remedy
        assert "{" not in one.message + one.remedy


def test_the_flag_names_the_card():
    (found,) = device.judge(about_device(build=CPU_BUILD, device=CPU), context())[0]
    assert "--use-cuda --reinstall" in found.remedy


def test_a_real_4_bit_layer_computes():
    assert all(0 < error < 0.2 for error in probe.matmul("cpu", "bfloat16").values())


def test_bitsandbytes_that_is_not_there_is_no_failure(monkeypatch):
    about = context()
    about.__dict__["installed"] = Installed({})
    result = only("device", about)
    assert (result.state, result.findings) == ("warning", ())
    assert "bitsandbytes" in result.message
    assert result.healthy


# Files


def test_a_whole_model(copy):
    result = only("files", context(copy.parents[1]))
    assert result.state == "ok"
    assert "sd3" in result.message
    assert result.facts["models"][0]["parts"] == ["transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"]


def test_no_model_says_what_happens_then(tmp_path):
    result = only("files", context(tmp_path))
    assert (result.state, result.message) == ("ok", messages.text("checks.files.none"))


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4967813672\n")


def damage_header(path):
    path.write_bytes(b"<!DOCTYPE html>" + b" " * 100)


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("harm", "file", "id"),
    [
        (truncate, f"transformer/{WEIGHTS}", "file-truncated"),
        (truncate, "text_encoder_2/model.safetensors", "file-truncated"),
        (damage_header, f"vae/{WEIGHTS}", "file-truncated"),
        (pointer, f"transformer/{WEIGHTS}", "file-pointer"),
        (Path.unlink, f"transformer/{WEIGHTS}", "file-missing"),
        (Path.unlink, "vae/config.json", "file-missing"),
        (Path.unlink, "tokenizer/merges.txt", "file-missing"),
        (Path.unlink, "scheduler/scheduler_config.json", "file-missing"),
        (shutil.rmtree, "text_encoder", "encoder-missing"),
        (shutil.rmtree, "vae", "file-missing"),
    ],
)
def test_damage_that_keeps_a_model_from_loading(copy, harm, file, id):
    harm(copy / file)
    result = only("files", context(model=copy))
    assert (result.state, ids(result.findings)) == ("failed", [id])
    assert file.split("/")[0] in result.message
    assert result.remedy
    results = list(checks.run([step("files"), *checks.RUN], context(model=copy)))
    assert [one.state for one in results] == ["failed", "skipped", "skipped", "skipped"]


@pytest.mark.parametrize(("harm", "id"), [(truncate, "file-truncated"), (pointer, "file-pointer")])
def test_a_damaged_t5_leaves_clip(copy, harm, id):
    harm(copy / "text_encoder_3" / "model.safetensors")
    results = list(checks.run([step("files"), *checks.RUN], context(model=copy)))
    assert [one.state for one in results] == ["warning", "ok", "failed", "ok"]
    assert ids(results[0].findings) == [id]


def test_a_model_without_t5(copy):
    shutil.rmtree(copy / "text_encoder_3")
    results = list(checks.run([step("files"), *checks.RUN], context(model=copy)))
    assert [one.state for one in results] == ["warning", "ok", "failed", "ok"]
    assert results[0].findings[0].cause == "missing-text-encoder"
    assert "CLIP" in results[3].message


def test_shards(copy):
    from safetensors.torch import load_file, save_file

    folder = copy / "text_encoder_2"
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert files.examine(copy).complete
    truncate(folder / "model-00002-of-00002.safetensors")
    assert ids(files.examine(copy).failed) == ["file-truncated"]
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert ids(files.examine(copy).failed) == ["file-missing", "file-truncated"]


def test_one_whole_variant_is_enough(copy):
    whole = copy / "transformer" / WEIGHTS
    shutil.copy(whole, copy / "transformer" / "diffusion_pytorch_model.fp16.safetensors")
    truncate(whole)
    assert files.examine(copy).complete


def test_of_several_models_one_is_enough(copy, model):
    shutil.copytree(model, copy.with_name("other"))
    truncate(copy / "transformer" / WEIGHTS)
    results = list(checks.run([step("files"), *checks.RUN], context(copy.parents[1], encoder="none")))
    assert [one.state for one in results] == ["warning", "ok", "ok", "ok"]
    assert results[1].facts["model"].endswith("other")


def test_another_kind_of_model_is_not_blamed_for_what_it_is(copy, tmp_path):
    """The server may have another one loaded: then the checks take what else there is."""
    other = tmp_path / "sdxl"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    for place, taken in (((copy.parents[1],), str(copy)), ((), str(tiny_sd3.cached()))):
        results = list(checks.run([step("files"), *checks.RUN], context(*place, model=other, encoder="none")))
        assert [one.state for one in results] == ["warning", "ok", "ok", "ok"]
        assert ids(results[0].findings) == ["not-sd3"]
        assert results[1].facts["model"] == taken
    assert ids(files.examine(single(tmp_path / "xl.safetensors", "conditioner.")).warned) == ["not-sd3"]


def hub(folder, name="stabilityai/stable-diffusion-3-medium-diffusers"):
    made = folder / f"models--{name.replace('/', '--')}"
    for part in ("blobs", "refs", "snapshots/abc"):
        (made / part).mkdir(parents=True)
    return made


def test_a_download_that_was_interrupted(tmp_path, model):
    made = hub(tmp_path)
    (made / "blobs" / "1234.incomplete").write_bytes(b"x")
    result = only("files", context(tmp_path))
    assert (result.state, ids(result.findings)) == ("failed", ["download-unfinished"])
    assert "stabilityai/stable-diffusion-3-medium-diffusers" in result.message
    shutil.copytree(model, made / "snapshots" / "abc", dirs_exist_ok=True)  # another variant of it is whole
    assert only("files", context(tmp_path)).facts["models"][0]["name"] == "stabilityai/stable-diffusion-3-medium-diffusers"
    assert only("files", context(tmp_path)).state == "ok"


def test_a_snapshot_with_a_link_that_leads_nowhere(tmp_path, model):
    made = hub(tmp_path)
    shutil.copytree(model, made / "snapshots" / "abc", dirs_exist_ok=True)
    file = made / "snapshots" / "abc" / "transformer" / WEIGHTS
    file.unlink()
    file.symlink_to("../../../blobs/gone")
    assert "file-missing" in ids(only("files", context(tmp_path)).findings)


def test_a_model_behind_a_licence(tmp_path):
    hub(tmp_path)
    hub(tmp_path, "someone/sd-vae")
    result = only("files", context(tmp_path))
    assert ids(result.findings) == ["model-gated"]
    assert "https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers" in result.remedy
    assert result.findings[0].cause == "gated-access"


def single(path, *prefixes):
    import torch
    from safetensors.torch import save_file

    names = {
        f"{prefix}joint_blocks.0.x.weight" if "diffusion" in prefix else f"{prefix}weight": torch.zeros(200_000) for prefix in prefixes
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(names, path)
    return path


TRANSFORMER, CLIP_L, CLIP_G = "model.diffusion_model.", "text_encoders.clip_l.", "text_encoders.clip_g."


def test_single_files(tmp_path):
    folder = tmp_path / "Stable-diffusion"
    single(folder / "bare.safetensors", TRANSFORMER, "first_stage_model.")
    single(folder / "incl_clips.safetensors", TRANSFORMER, CLIP_L, CLIP_G)
    single(folder / "lora.safetensors", "lora_unet.", "lora_te.")
    pointer(folder / "sd3.5_large.safetensors")
    pointer(folder / "sdxl.safetensors")
    found = {one.name: one for one in files.search([tmp_path])}
    assert found.keys() == {"bare.safetensors", "incl_clips.safetensors", "sd3.5_large.safetensors"}
    assert ids(found["bare.safetensors"].failed) == ["encoder-missing"]
    assert "incl_clips" in found["bare.safetensors"].failed[0].remedy
    assert found["incl_clips.safetensors"].complete
    assert ids(found["sd3.5_large.safetensors"].failed) == ["file-pointer"]
    truncate(folder / "incl_clips.safetensors")
    assert ids(files.examine(folder / "incl_clips.safetensors").failed) == ["file-truncated"]


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (b"", "truncated"),
        (b"\x00" * 7, "truncated"),
        (struct.pack("<Q", 2**63), "truncated"),
        (struct.pack("<Q", 2) + b"{}", "truncated"),
        (struct.pack("<Q", 4) + b"nope", "truncated"),
        (struct.pack("<Q", 2) + b"[]", "truncated"),
        (struct.pack("<Q", 7) + b'{"a":1}', "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer"),
    ],
)
def test_headers_that_are_none(tmp_path, content, state):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert weights.read_header(file).state == state


def test_links_that_go_in_circles(copy):
    (copy.parent / "again").symlink_to(copy.parents[1])
    assert [one.name for one in files.search([copy.parents[1]])] == ["sd3"]


# Memory


def test_what_does_not_fit_is_said_with_what_would(model):
    small = capacity.Capacity("cuda", "", 10**6, 10**6, 0, 32 * 10**9, 32 * 10**9)
    lack = room.lack(model, choices.find("bf16"), NVIDIA, small, 1024)
    assert lack is not None
    assert (lack.rule, lack.cause) == ("memory-too-small", "out-of-memory")
    assert lack.remedy
    assert room.lack(model, choices.find("bf16"), NVIDIA, capacity.card(24, 64), 512) is None
    assert room.alone(capacity.Capacity("cpu", ram_total=10, ram_usable=5)).ram_usable == 10


def test_the_run_is_refused_where_memory_is_too_small(copy, monkeypatch):
    (copy / "recipe.json").unlink()  # not one of ours any more
    monkeypatch.setattr(capacity, "_ram", lambda: (10**6, 10**6))
    results = list(checks.run(checks.RUN, context(model=copy)))
    assert [one.state for one in results] == ["skipped"] * 3
    assert ids(results[0].findings) == ["memory-too-small"]
    assert not results[0].healthy


# The picture


def test_a_black_picture_is_none(model, monkeypatch):
    about = context(model=model, encoder="none")
    running = checks.run(checks.RUN, about)
    next(running), next(running)
    import torch

    for parameter in about.held["pipeline"].vae.decoder.conv_out.parameters():
        parameter.data.zero_()
    result = next(running)
    assert (result.state, ids(result.findings)) == ("failed", ["image-black"])
    about = context(model=model, encoder="none")
    running = checks.run(checks.RUN, about)
    next(running), next(running)
    about.held["pipeline"].vae.decoder.conv_out.bias.data.fill_(torch.nan)
    assert ids(next(running).findings) == ["image-black"]


# The child


def test_a_run_in_a_child(copy):
    told = []
    results = list(checks.rehearse_in_child(context(copy.parents[1], encoder="nf4"), told.append))
    assert [(one.id, one.state) for one in results] == [("base", "ok"), ("encoder", "ok"), ("image", "ok")]
    assert results[0].facts["model"] == str(copy)
    assert results[1].facts["encoder"] == "nf4"
    assert list(dict.fromkeys(at.id for at in told)) == ["base", "encoder", "image"]


@pytest.mark.parametrize("when", ["at once", "on the way", "after the first"])
def test_a_child_is_gone_when_cancelled(model, children, when):
    told, results = [], []

    def cancelled():
        return {"at once": True, "on the way": bool(told), "after the first": bool(results)}[when]

    for result in checks.rehearse_in_child(context(model=model), told.append, cancelled):
        results.append(result)
    assert [one.state for one in results] == ["ok" if when == "after the first" else "cancelled", "cancelled", "cancelled"]
    assert [one.code for one in children] == [KILLED]
    with pytest.raises(ProcessLookupError):
        os.kill(children[0].pid, 0)


def test_a_child_is_gone_when_nobody_listens_any_more(model, children):
    running = checks.rehearse_in_child(context(model=model))
    assert next(running).id == "base"
    running.close()
    assert children[0].code is not None


def test_a_child_that_dies_is_a_failed_step(model, children):
    results = []

    def progress(at):
        if at.id == "base":
            os.kill(children[0].pid, 9)

    results = list(checks.rehearse_in_child(context(model=model), progress))
    assert [one.state for one in results] == ["failed", "skipped", "skipped"]
    assert ids(results[0].findings) == ["process-killed"]


def test_a_child_that_can_not_even_start(model, children, monkeypatch):
    monkeypatch.setattr(rehearsal, "_arguments", lambda about: ["-c", "import sys; print('{broken'); sys.exit('no luck')"])
    results = list(checks.rehearse_in_child(context(model=model)))
    assert [one.state for one in results] == ["failed", "skipped", "skipped"]
    assert "no luck" in results[0].message


def test_what_libraries_print_does_not_break_the_lines():
    code = """
import os, sys
from sd3deploy.child import answer
write = answer()
print("from Python"); os.write(1, b"from a native library\\n"); os.system("echo from a process")
write({"one": 1})
"""
    with child.Child(["-c", code]) as started:
        assert list(started.values()) == [{"one": 1}]
        assert all(f"from {who}" in started.said for who in ("Python", "a native library", "a process"))


def test_a_child_ends_with_the_process_that_started_it():
    code = "import threading; from sd3deploy import child; child.follow_parent(); print(1, flush=True)"
    code += "; threading.Event().wait()"
    with child.Child(["-c", code]) as started:
        values = started.values()
        assert next(values) == 1
        started._process.stdin.close()
        assert list(values) == []
        assert started.code == 3


def test_the_process_that_asks_stays_as_it_is(model):
    """Beside a running server: nothing heavy is imported into it, and its memory holds no second model."""
    code = f"""
import sys
from pathlib import Path
from sd3deploy.diagnosis import checks
about = checks.Context(model=Path({str(model)!r}), device="cpu", backend="cpu")
results = list(checks.run(checks.QUICK, about))
results += checks.rehearse_in_child(about, before=results)
print([one.state for one in results], sorted({{"torch", "transformers", "diffusers", "bitsandbytes", "accelerate"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == f"{['ok'] * 8} []", done.stderr


def test_two_runs_at_the_same_time(model):
    results = {}

    def rehearse(name):
        results[name] = [one.state for one in checks.rehearse_in_child(context(model=model))]

    threads = [threading.Thread(target=rehearse, args=(name,)) for name in "ab"]
    [one.start() for one in threads]
    [one.join() for one in threads]
    assert results == {"a": ["ok"] * 3, "b": ["ok"] * 3}


# Words


@pytest.mark.parametrize("one", rules.SEEN.values(), ids=lambda one: one.id)
def test_every_rule_has_its_words(one):
    assert one.cause in CAUSES
    assert one.source.startswith("https://")
    words = [id for id in messages.catalogue("en") if id.startswith(f"checks.rule.{one.id}")]
    assert words
    assert all(f"{id}.remedy" in words for id in words if not id.endswith(".remedy"))


def test_every_step_has_a_title():
    assert all(checks.title(one.id) for one in checks.STEPS)
