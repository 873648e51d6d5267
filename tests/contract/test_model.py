"""Loading, caches, and what the host's own text encoder setting does."""

import pytest

from tests.contract.conftest import encoded


def names(host, start):
    return [name for name, _ in host.events(start)]


def test_checkpoints_know_their_folder(host):
    assert host.run("""
        from modules import sd_models, shared
        info = shared.sd_model.sd_checkpoint_info
        result = [sd_models.path_to_repo(info) == info.path, info.name]
    """) == [True, "Diffusers/tiny-sd3"]


def test_clear_caches_forgets_native_prompts_but_not_those_of_encode_prompt(host):
    assert host.run("""
        from modules import prompt_parser_diffusers, sd_hijack_te, sd_models, sd_offload
        encoded = sd_hijack_te.prompt_cache.cache if hasattr(sd_hijack_te, "prompt_cache") else {}  # since 2026-07
        prompt_parser_diffusers.cache["probe"] = encoded["probe"] = 1
        sd_models.clear_caches(full=True)
        result = ["probe" in prompt_parser_diffusers.cache, "probe" in encoded, sd_offload.offload_hook_instance]
        encoded.clear()
    """) == [False, True, None]


def test_the_same_prompt_is_encoded_once_until_the_host_takes_another_vae(host, other_vae):
    with encoded(host) as counts:
        host.txt2img("the words")
        assert counts() > 0
        host.txt2img("the words", seed=2)
        assert counts() == 0
        before = host.run("from modules import modeldata; result = id(modeldata.model_data.sd_model.vae)")
        assert host.set(sd_vae=other_vae) == {"sd_vae": True}
        assert host.run("from modules import modeldata; result = id(modeldata.model_data.sd_model.vae)") != before
        host.txt2img("the words")
        assert counts() > 0  # for nothing: a prompt does not depend on the VAE


def test_encode_prompt_of_a_loaded_pipeline_is_the_hosts(host):
    assert host.run("""
        from modules import sd_hijack_te, shared
        pipe = shared.sd_model
        result = [hasattr(pipe, "orig_encode_prompt"), pipe.encode_prompt is sd_hijack_te.hijack_encode_prompt]
    """) == [True, True]


def test_choices_of_the_text_encoder_are_asked_for_at_every_use(host):
    assert host.run("""
        from modules import shared, shared_items
        original = shared_items.sd_te_items
        shared_items.sd_te_items = lambda: ["Default", "from the probe"]
        result = shared.opts.data_labels["sd_text_encoder"].component_args()["choices"]
        shared_items.sd_te_items = original
    """) == ["Default", "from the probe"]


def test_arguments_of_a_text_encoder_ask_for_its_device(host):
    assert host.run("""
        from modules import model_quant
        args, quant = model_quant.get_dit_args({"low_cpu_mem_usage": True}, module="TE", device_map=True, allow_quant=True)
        result = [str(args.get("device_map")), quant]
    """) in (["cpu", {}], ["None", {}])  # the second before 2026, which leaves it to transformers


def test_sdnq_is_the_hosts_own_quantization(host):
    assert host.run("""
        from modules import model_quant, shared
        shared.opts.data["sdnq_quantize_weights"] = ["TE"]
        config = model_quant.create_config(module="TE")["quantization_config"]
        nothing = model_quant.create_config(module="Model")
        shared.opts.data["sdnq_quantize_weights"] = []
        result = [type(config).__name__, config.weights_dtype, nothing]
    """) == ["SDNQConfig", "int8", {}]


def test_moving_a_model_never_raises(host):
    assert host.run("""
        from modules import devices, sd_models
        class Stubborn:
            device = "meta"
            def to(self, device):
                raise RuntimeError("can not move")
        sd_models.move_model(Stubborn(), devices.cpu)
        result = "no exception"
    """) == "no exception"


def test_reloading_passes_by_the_loader_again(host):
    start = host.count()
    host.post("/sdapi/v1/reload-checkpoint?force=true")
    assert [name for name in names(host, start) if name in ("load_sd3", "load_text_encoder", "on_model_loaded")] == [
        "load_sd3", "load_text_encoder", "on_model_loaded"]  # fmt: skip


def test_going_back_to_the_default_encoder_leaves_the_old_one(host):
    assert host.run("""
        from modules import model_te, sd_models, shared
        marked = shared.sd_model.text_encoder_3
        shared.opts.data["sd_text_encoder"] = "None"
        sd_models.reload_text_encoder()
        after_none = shared.sd_model.text_encoder_3 is marked
        shared.opts.data["sd_text_encoder"] = "Default"
        sd_models.reload_text_encoder()
        result = [after_none, shared.sd_model.text_encoder_3 is marked]
    """) == [True, True]


def test_without_t5_an_image_still_comes(host):
    host.run("""
        from modules import sd_models, shared
        sd3probe.encoder, shared.sd_model.text_encoder_3 = shared.sd_model.text_encoder_3, None
        sd_models.clear_caches(full=True)
    """)
    images = host.txt2img()["images"]
    host.run("""
        from modules import sd_models, shared
        shared.sd_model.text_encoder_3 = sd3probe.encoder
        del sd3probe.encoder
        sd_models.clear_caches(full=True)
    """)
    assert len(images) == 1


def test_a_foreign_name_in_the_hosts_setting_breaks_loading(host):
    """Why this extension keeps its choice in a setting of its own."""
    host.run("from modules import shared; shared.opts.data['sd_text_encoder'] = 'T5 FP4'")
    host.post("/sdapi/v1/reload-checkpoint?force=true")
    loaded = host.run("from modules import modeldata; result = modeldata.model_data.sd_model is not None")
    host.run("from modules import shared; shared.opts.data['sd_text_encoder'] = 'Default'")
    host.post("/sdapi/v1/reload-checkpoint?force=true")
    if loaded:
        pytest.skip("this SD.Next, before 2026-03, has a 4-bit T5 of that name itself")
    assert len(host.txt2img()["images"]) == 1


@pytest.mark.parametrize("name", ["apply_balanced_offload", "set_diffuser_offload", "reload_model_weights", "unload_model_weights"])
def test_the_functions_that_a_swap_needs_are_attributes_of_sd_models(host, name):
    assert host.run(f"from modules import sd_models; result = callable(sd_models.{name})")
