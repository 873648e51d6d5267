"""A change of the encoder whose weights come over the network: how fast it is, and Cancel while the server hangs."""

from __future__ import annotations

import threading

import pytest

from sd3deploy import tiny_sd3
from sd3deploy.deployment import Deployment, speed
from sd3deploy.encoders import load, source
from sd3deploy.encoders.cache import Cache
from sd3deploy.encoders.stopping import Stopped
from sd3deploy.events import Events
from tests.hub_server import Hub, in_place_of_the_hub
from tests.test_deployment import Host, choose


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    in_place_of_the_hub(server, monkeypatch)
    yield server
    server.close()


def test_it_is_told_how_fast_it_is_and_cancel_ends_it_while_the_server_hangs(hub, tmp_path, monkeypatch):
    import diffusers

    monkeypatch.setattr(speed, "_LEAST", 1e-9)
    host = Host(tiny_sd3.ensure())
    cache = Cache(tmp_path)
    hub.repositories["org/t5"] = {f"te/{file.name}": file.read_bytes() for file in (host.folder / "text_encoder_3").iterdir()}
    host.pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(host.folder)
    host.options |= {"sd3_weights": "Repository", "sd3_weights_repository": "org/t5:te/"}
    monkeypatch.setattr(host, "facts", lambda: source.Facts(str(host.folder)))
    monkeypatch.setattr(host, "cache", lambda: cache)
    deployment = Deployment(host, Events())
    told = []
    host.press = lambda job: told.append(deployment.status()["progress"]["text"])
    choose(deployment, "T5 FP8")
    assert hub.served
    assert " per second, 0:00 left" in told[-1]
    if (thread := load.writing()) is not None:
        thread.join()
    assert len(cache.entries()) == 1
    encoder = host.pipe.text_encoder_3
    hub.hanging.set()
    canceller = threading.Thread(target=lambda: (hub.hung.wait(), deployment.cancel()))
    canceller.start()
    with pytest.raises(Stopped):
        choose(deployment, "T5 BF16")
    canceller.join()
    assert host.pipe.text_encoder_3 is encoder
    assert not hub.released.is_set()  # it hangs still
