"""The language of the page, as the host offers it, and its description of the API."""

from __future__ import annotations

import pytest

from demo import server
from tests.contract.conftest import start


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locale")
    server.data_folder(folder / "data", extension=None, ui_locale="de: German")
    started = start(folder, "data", "--locale", "zh")
    yield started
    started.stop()


def test_the_flag_stands_in_for_the_setting(chinese):
    assert chinese.get("/sdapi/v1/options")["ui_locale"] == "zh"


def test_the_setting_is_auto_and_its_choices_are_a_code_and_a_name(host):
    assert host.run("from modules import shared; result = shared.opts.ui_locale") == "Auto"
    choices = host.run("from modules import shared; result = shared.opts.data_labels['ui_locale'].component_args()['choices']")
    assert choices[0] == "Auto"
    assert {"en: English", "zh: Chinese"} <= set(choices)
    assert all(one[2:4] == ": " for one in choices[1:])


def test_the_description_of_the_api_is_there_without_a_flag_and_without_the_password(host):
    host.client.auth = None
    try:
        paths = host.get("/openapi.json")["paths"]
    finally:
        host.client.auth = host.auth
    assert "/sdapi/v1/txt2img" in paths
    assert "/sdapi/v1/sd3probe" in paths
