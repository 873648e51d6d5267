"""Each kind of source of T5's weights, chosen in the settings: the picture comes, and says what its text encoder was made from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from demo import server
from sd3deploy import tiny_sd3
from tests import forms, gguf_files
from tests.contract.conftest import AUTH, start
from tests.hub_server import Hub
from tests.waiting import until

REPOSITORY = "owner/t5"


@pytest.fixture(scope="module")
def state():
    """Of the model that the host has."""
    folder = tiny_sd3.ensure() / "text_encoder_3"
    state = {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}
    state.pop("encoder.embed_tokens.weight", None)
    return state


@pytest.fixture(scope="module")
def files(state, tmp_path_factory):
    """Name of a form → a file or folder, and what is said of it."""
    folder = tmp_path_factory.mktemp("forms 文件")
    case = next(case for case in forms.CASES if case.name == "scale_weight [N]")
    tensors, metadata, _ = forms.written(case, state)
    whole = folder / "folder"
    whole.mkdir()
    (whole / "config.json").write_bytes((tiny_sd3.ensure() / "text_encoder_3" / "config.json").read_bytes())
    torch.save({key: tensor.half() for key, tensor in state.items()}, whole / "pytorch_model.bin")
    return {
        "FP8 with scales": (forms.save(folder / "t5.sft", tensors, metadata), "from FP8, a scale per row"),
        "GGUF": (gguf_files.write(folder / "t5.gguf", state, "Q8_0"), "from Q8_0"),
        "folder with .bin": (whole, ""),
    }


@pytest.fixture(scope="module")
def hub(state, tmp_path_factory):
    found = Hub()
    file = forms.save(tmp_path_factory.mktemp("hub") / "t5.safetensors", {key: forms.raw(one.half()) for key, one in state.items()})
    found.repositories[REPOSITORY] = {"t5.safetensors": file.read_bytes()}
    yield found
    found.close()


@pytest.fixture(scope="module")
def host(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    server.data_folder(folder / "data")
    started = start(folder, "data", auth=AUTH, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0")
    yield started
    started.stop()


def test_a_source_that_is_changed_is_loaded_when_it_is_applied(host, files):
    gguf, told = files["GGUF"]
    whole, _ = files["folder with .bin"]
    host.set(sd3_weights="Local file", sd3_weights_file=str(gguf))
    assert host.set(sd3_text_encoder="T5 FP8") == {"sd3_text_encoder": True}, host.log()[-2000:]
    status = host.get("/sdapi/v1/sd3/status")
    assert f"from {status['quantized_before']}" == told
    assert "had been quantized before (Q8_0)" in status["line"]
    host.set(sd3_weights_file=str(whole))
    assert until(lambda: host.get("/sdapi/v1/sd3/status")["quantized_before"] is None), host.log()[-2000:]
    assert until(lambda: not host.get("/sdapi/v1/sd3/status")["busy"])  # it has told that it is ready: after an error, that one is over
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 FP8"
    host.set(sd3_weights_file="/nowhere/t5.gguf")
    assert until(lambda: host.get("/sdapi/v1/sd3/status")["last_error"])
    error = host.get("/sdapi/v1/sd3/status")["last_error"]
    assert error["id"] == "source.file-missing"
    assert "T5 FP8 is still in use. The new source of weights stays in the settings" in error["message"]
    host.set(sd3_weights_file=str(whole))
    host.set(sd3_text_encoder="Host default")


def words(host):
    """What the metadata of a picture say."""
    (text,) = host.txt2img()["info"]["infotexts"]
    return text


@pytest.mark.parametrize("form", ["FP8 with scales", "GGUF", "folder with .bin"])
def test_a_local_file(host, files, form):
    place, told = files[form]
    assert host.set(sd3_text_encoder="Host default") is not None
    host.set(sd3_weights="Local file", sd3_weights_file=str(place))
    assert host.set(sd3_text_encoder="T5 FP8") == {"sd3_text_encoder": True}, host.log()[-2000:]
    status = host.get("/sdapi/v1/sd3/status")
    assert status["encoder"] == "T5 FP8"
    assert (status["quantized_before"] or "") == told.removeprefix("from ")
    text = words(host)
    assert "T5: T5 FP8" in text
    assert ("from " in text) == bool(told)
    assert told in text


def test_flan_is_taken_and_said(host, state, tmp_path):
    file = forms.save(tmp_path / "flan_t5_xxl_TE-only_FP16.safetensors", {key: forms.raw(one.half()) for key, one in state.items()})
    host.set(sd3_text_encoder="Host default")
    host.set(sd3_weights="Local file", sd3_weights_file=str(file))
    assert host.set(sd3_text_encoder="T5 FP8") == {"sd3_text_encoder": True}, host.log()[-2000:]
    told = host.get("/sdapi/v1/sd3/events")["events"]
    assert any(one["id"].startswith("encoder.ready") and "flan-T5-XXL" in one["message"] for one in told[-3:])


def test_a_repository_of_which_nothing_is_stored(host, hub):
    assert host.set(sd3_text_encoder="Host default") is not None
    host.set(sd3_weights="Repository", sd3_weights_repository=f"{REPOSITORY}:t5.safetensors")
    assert host.set(sd3_text_encoder="T5 FP8") == {"sd3_text_encoder": True}, host.log()[-2000:]
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 FP8"
    assert "T5: T5 FP8" in words(host)
    size = len(hub.repositories[REPOSITORY]["t5.safetensors"])
    assert size <= hub.served <= 1.1 * size + 2**17  # a header is read in pages, before and while it is installed
    assert not [path for path in (host.data / "hf").rglob("*") if path.is_file() and path.stat().st_size > size // 2]


def test_another_model_is_refused_by_name_and_the_encoder_stays(host, state, tmp_path):
    wrong = dict(state)
    wrong["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"] = state[
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ].clone()
    file = forms.save(tmp_path / "t5.safetensors", {key: forms.raw(one.half()) for key, one in wrong.items()})
    before = host.get("/sdapi/v1/sd3/status")["encoder"]
    host.set(sd3_weights="Local file", sd3_weights_file=str(file))
    answer = host.client.post("/sdapi/v1/sd3/encoder", json={"encoder": "T5 BF16"})
    assert answer.status_code == 409
    assert answer.json()["body"]["id"].startswith("identity.")
    assert "UMT5" in answer.json()["body"]["message"]
    assert host.get("/sdapi/v1/sd3/status")["encoder"] == before


def test_a_source_and_an_encoder_that_are_cancelled_together_are_one_change_and_no_picture_reads_from_there(host, hub):
    host.set(sd3_text_encoder="Host default")
    host.set(sd3_weights="Model")
    assert host.set(sd3_text_encoder="T5 FP8") == {"sd3_text_encoder": True}, host.log()[-2000:]
    seen = host.get("/sdapi/v1/sd3/events")["events"][-1]["seq"]

    def told():
        return host.get(f"/sdapi/v1/sd3/events?since={seen}")["events"]

    hub.hanging.set()
    try:
        with ThreadPoolExecutor() as pool:
            repository = {"sd3_weights": "Repository", "sd3_weights_repository": f"{REPOSITORY}:t5.safetensors"}
            change = pool.submit(host.set, **repository, sd3_text_encoder="T5 Q4")
            assert until(hub.hung.is_set)
            assert until(lambda: host.get("/sdapi/v1/sd3/status")["busy"])
            assert host.post("/sdapi/v1/sd3/cancel", {})["cancelled"]
            assert change.result(120)["sd3_text_encoder"] is False
    finally:
        hub.hanging.clear()
        hub.released.set()
    cancelled = [event["message"] for event in told() if event["id"].startswith("encoder.cancelled")]
    assert len(cancelled) == 1
    assert "T5 FP8 is still in use. The new source of weights stays in the settings" in cancelled[0]
    assert "encoder.waiting" not in [event["id"] for event in told()]
    served = hub.served
    assert "T5: T5 FP8" in words(host)
    assert hub.served == served
    assert host.set(sd3_text_encoder="T5 Q4") == {"sd3_text_encoder": True}, host.log()[-2000:]
    assert hub.served > served
