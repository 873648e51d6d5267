"""What is ours inside of the host's calls fails, one thing at a time: the model loads, the picture comes, one sentence names what is off.

The functions of the extension are made to raise, and the host's functions get one more argument. All of it is done in the running host, and
put back. What a host does that has changed itself is in tests/drift/.
"""

from __future__ import annotations

import shutil
import textwrap

import pytest

from demo import server
from sd3deploy import messages
from tests.contract.conftest import AUTH, PROBE, REAL, ProbedHost, start


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patch")
    data = server.data_folder(folder / "data")
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    probed = ProbedHost(started.data, started.url, started.process, started.auth)
    probed.run("""
        import gc
        from sd3deploy.webui.host.feature import Features
        from sd3deploy.webui.host.hooks import Hooks
        hooks = next(one for one in gc.get_objects() if type(one) is Hooks)
        features = next(one for one in gc.get_objects() if type(one) is Features)
        sd3probe.hooks, sd3probe.features, sd3probe.undo, sd3probe.raised = hooks, features, [], []

        def boom(*args, **kwargs):
            sd3probe.raised.append(1)
            raise RuntimeError("broken on purpose")

        class Exit:
            def __enter__(self): ...
            def __exit__(self, *values):
                boom()

        class Enter(Exit):
            __enter__ = boom

        def put(owner, name, value):
            "Set an attribute until the end of the test."
            own = name in vars(owner)
            before = getattr(owner, name, None)
            sd3probe.undo.append(lambda: setattr(owner, name, before) if own else delattr(owner, name))
            setattr(owner, name, value)

        sd3probe.boom, sd3probe.put, sd3probe.Enter, sd3probe.Exit = boom, put, Enter, Exit
    """)
    yield probed
    probed.stop()


@pytest.fixture
def broken(host, news):
    """`broken(code)` breaks something until the end of the test. `broken.off()` gives the parts that were said to be off since, each by its
    id as often as it was told; everything else that is told fails the test.
    """

    class Broken:
        def __call__(self, code: str) -> None:
            host.run(f"""
import sys
from sd3deploy.webui.host import hooks as module, offload
from sd3deploy.webui.jobs import facts, forecast, watching
hooks, put, boom, Enter, Exit = sd3probe.hooks, sd3probe.put, sd3probe.boom, sd3probe.Enter, sd3probe.Exit
sd3probe.raised.clear()
{textwrap.dedent(code)}
""")

        def off(self) -> list[str]:
            names = {messages.text(f"feature.{id}"): id for id in FEATURES}
            found = []
            for event in news():
                if event["id"] in ("size.small", "encoder.loading", "encoder.ready", "encoder.none-ready", "encoder.ready-smaller"):
                    continue
                assert event["id"] == "host.feature-off", event
                assert event["severity"] == "warning"
                assert "report it" in event["remedy"]
                (name,) = [name for name in names if f"switched off {name}: " in event["message"]]
                assert messages.text(f"feature.{names[name]}.lost") in event["message"]
                found.append(names[name])
            return found

        def raised(self) -> int:
            return host.run("result = len(sd3probe.raised)")

    yield Broken()
    host.run("""
        while sd3probe.undo:
            sd3probe.undo.pop()()
        for feature in sd3probe.features._known.values():
            feature._failed = False
        for patch in sd3probe.hooks.patches:
            patch.active = True
        from sd3deploy.webui.host.reach import state
        for found in (state.unmet, state.off, state._told):
            found.clear()
    """)
    assert len(host.txt2img()["images"]) == 1


FEATURES = [id.removeprefix("feature.").removesuffix(".lost") for id in messages.catalogue("en")
            if id.startswith("feature.") and id.endswith(".lost") and id != "feature.route.lost"]  # fmt: skip


def picture(host):
    """A picture comes, and it is the same as ever."""
    result = host.txt2img(seed=7)
    assert len(result["images"]) == 1


def load(host):
    host.post("/sdapi/v1/unload-checkpoint", {})
    host.post("/sdapi/v1/reload-checkpoint")
    assert host.run("from modules import modeldata; result = type(modeldata.model_data.sd_model).__name__") == "StableDiffusion3Pipeline"


def report(host):
    """The host reports an error; whoever looks for that in the log finds it."""
    file = host.data / "sdnext.log"
    before = file.read_text("utf-8", "replace").count("Probe: ValueError")
    host.run("""
        from modules import errors
        try:
            raise ValueError("reported by the host")
        except ValueError as error:
            errors.display(error, "Probe")
    """)
    assert file.read_text("utf-8", "replace").count("Probe: ValueError") == before + 1


def vae(host):
    host.run("from modules import sd_vae; sd_vae.reload_vae_weights()")


def pip(host):
    assert host.run("import installer; result = installer.pip('--version')[0] is not None")


# What is broken → the parts that are off then, how it is broken, and what the host is asked to do.
CASES = {
    "the name of the model": ("load", "put(hooks._host, 'selected', boom)", load),
    "the watch is not made": ("load", "put(hooks._watching, 'loading', boom)", load),
    "the watch does not begin": ("load", "put(hooks._watching, 'loading', lambda title: Enter())", load),
    "the watch does not end": ("load", "put(hooks._watching, 'loading', lambda title: Exit())", load),
    "the errors of a load are not watched": ("load", "put(hooks._watching.diagnosing, 'watch', lambda: Exit())", load),
    "the run of a load is not made": ("load", "put(hooks._watching.monitor, 'run', boom)", load),
    "the encoder is not looked at after a load": ("swap", "put(hooks._deployment, 'reconcile', boom)", load),
    "the place of the model": ("load-sd3", "put(hooks._host, 'place_of', boom)", load),
    "memory for a model": ("foresee", "put(hooks._watching.forecast, 'foresee', boom)", load),
    "the encoder for a load": ("encoder", "put(hooks._deployment, 'encoder_for_load', boom)", load),
    "an encoder of ours stays": (
        "leave-room", "put(hooks._deployment, 'encoder_for_load', lambda: (True, hooks._host.default_encoder()));"
        "put(offload, 'sdnext', None)", load),
    "processors after a load": ("attention", "put(hooks._guarding, 'attention_set', boom)", load),
    "the end of a job": ("job", "put(hooks._guarding, 'inner', boom)", picture),
    "the answer of a job": ("job", "put(hooks._watching, 'inner', boom)", picture),
    "the errors of a job are not watched": ("batch job", "put(hooks._watching.diagnosing, 'watch', lambda: Enter())", picture),
    "the watch over a batch": ("batch", "put(hooks._watching, 'run', boom)", picture),
    "the estimate of a batch": ("batch", "put(watching, 'estimate', boom)", picture),
    "the memory before a batch": ("batch", "put(watching, 'free_memory', boom)", picture),
    "the phases do not begin": ("batch", "put(watching.phases, 'watched', lambda *values: Enter())", picture),
    "the phases do not end": ("batch", "put(watching.phases, 'watched', lambda *values: Exit())", picture),
    "the run of a batch is not made": ("batch", "put(hooks._watching.monitor, 'run', boom)", picture),
    "nothing is learned from a batch": ("batch", "put(hooks._watching.forecast.corrections, 'learn', boom)", picture),
    "processors before a batch": ("last-look", "put(facts, 'attention_facts', boom)", picture),
    "the first look": ("note", "put(facts, 'floorable', boom)", picture),
    "the encoder of a job": ("swap", "put(hooks._deployment, 'reconcile', boom)", picture),
    "the guards": ("guard", "put(facts, 'gather', boom)", picture),
    "the forecast": ("batch forecast", "put(hooks._watching.forecast, 'setup', boom)", picture),
    "an error": ("errors", "put(hooks._watching, 'note', boom)", report),
    "prompts are not kept": ("vae", "put(module.prompts, 'kept', boom)", vae),
    "prompts are not put aside": ("vae", "put(module.prompts, 'kept', lambda pipeline: Enter())", vae),
    "prompts are not put back": ("vae", "put(module.prompts, 'kept', lambda pipeline: Exit())", vae),
    "packages": ("packages", "put(module.installed, 'snapshot', boom)", pip),
    "new packages": ("packages", "put(hooks._deployment, 'installed', boom)", pip),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_helper_that_raises_costs_nothing_and_is_named_once(host, broken, case):
    parts, code, act = CASES[case]
    broken(code)
    act(host)
    act(host)
    off = sorted(broken.off())
    assert off == parts.split()
    assert broken.raised() == len(parts.split()) or parts == "leave-room"
    picture(host)
    assert host.run("result = any(sd3probe.hooks._deployment.busy.acquire(0.2) for _ in range(100))")  # on another thread than the load's
    host.run("sd3probe.hooks._deployment.busy.release()")


@pytest.mark.parametrize("hook", ["before_process", "process", "before_process_batch"])
def test_a_callback_raises_nothing_whatever_it_is_called_with(host, hook):
    assert host.run(f"""
        from sd3deploy.events import Events
        from sd3deploy.webui.host.feature import Features
        from sd3deploy.webui.page import panel
        class Broken:
            def __getattr__(self, name):
                raise RuntimeError("broken on purpose")
            def __setattr__(self, name, value):
                raise RuntimeError("broken on purpose")
        events = Events()
        hooks = sd3probe.hooks
        script = panel.script_class(hooks._deployment, hooks._guarding, hooks._watching, None, None, None, Features(events))()
        result = [getattr(script, {hook!r})(Broken(), Broken()) for _ in range(3)]
        result += [event.id for event in events.since(0) if event.id.startswith("host.")]
    """) == [None, None, None, "host.feature-off"]


def test_a_model_that_is_none_of_stable_diffusion_3_pays_for_nothing_of_ours(host, broken):
    if REAL:
        pytest.skip("the real host tells models apart by the names of their classes: an SD3 under another name makes no picture there")
    host.run("""
        from modules import modeldata
        model = modeldata.model_data.sd_model
        sd3probe.kind = type(model)
        model.__class__ = type("AnotherPipeline", (sd3probe.kind,), {})
    """)
    try:
        broken("""
        put(hooks._watching, "run", boom)
        put(hooks._guarding, "inner", boom)
        put(hooks._deployment, "reconcile", boom)
        """)
        picture(host)
        picture(host)
        assert sorted(broken.off()) == ["batch", "job", "swap"]
    finally:
        host.run("from modules import modeldata; modeldata.model_data.sd_model.__class__ = sd3probe.kind")


def test_an_error_of_the_host_is_the_one_that_is_answered_when_ours_fails_on_its_way(host, broken):
    broken("""
        from modules import processing
        def failing(p):
            raise ValueError("of the host")
        for patch in hooks.patches:
            if patch.name == "process_images_inner":
                put(hooks._watching.diagnosing, "note", boom)
                put(hooks._watching.diagnosing, "tell", boom)
                put(processing, "process_init", failing)
        """)
    answer = host.client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "width": 64, "height": 64, "steps": 1})
    assert answer.status_code == 500
    assert "of the host" in answer.text
    assert "on purpose" not in answer.text
    assert set(broken.off()) <= {"job", "errors"}
    assert "job" in broken.off()


# The host has changed


@pytest.mark.parametrize("way", ["patched(p, 1)", "patched(p, more=1)", "patched(p=p)", "patched(more=1, p=p)"])
@pytest.mark.parametrize("place", ["processing.process_images_inner", "processing_diffusers.process_diffusers"])
def test_one_more_argument_is_handed_on(host, broken, place, way):
    module, name = place.split(".")
    host.run(f"""
        from modules import {module} as module
        sd3probe.seen = []
        hooks, real = sd3probe.hooks, module.{name}
        hooks.undo()
        before = module.{name}
        def {name}(p, more=None):
            sd3probe.seen.append(more)
            return before(p)
        module.{name} = {name}
        hooks.apply()
        patched = module.{name}
        assert patched is not {name}
        module.{name} = lambda p: {way}
        def back():
            hooks.undo()
            module.{name} = before
            hooks.apply()
        sd3probe.undo.append(back)
    """)
    picture(host)
    picture(host)
    assert host.run("result = sd3probe.seen") == [1 if "1" in way else None] * 2
    assert broken.off() == []
    assert host.txt2img(width=200, height=128)["info"]["extra_generation_params"]["SD3 size"]  # the guards are awake


def test_a_result_without_a_length_is_a_picture_all_the_same_and_told_once(host, broken, news):
    host.run("""
        from modules import processing_diffusers as module
        hooks = sd3probe.hooks
        hooks.undo()
        before = module.process_diffusers
        class Result:
            def __init__(self, pictures):
                self.pictures = pictures
            def __iter__(self):
                return iter(self.pictures)
        module.process_diffusers = lambda p: Result(before(p))
        hooks.apply()
        def back():
            hooks.undo()
            module.process_diffusers = before
            hooks.apply()
        sd3probe.undo.append(back)
    """)
    picture(host)
    picture(host)
    told = [event for event in news() if event["id"].startswith("host.")]
    assert [event["id"] for event in told] == ["host.changed"]
    assert messages.text("feature.batch") in told[0]["message"]
