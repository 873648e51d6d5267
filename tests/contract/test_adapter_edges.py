"""What the adapter and the hooks do where there is nothing to do."""

import shutil

import pytest

from demo import server
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A host with this extension in it, and the probe."""
    folder = tmp_path_factory.mktemp("edges")
    data = server.data_folder(folder / "data")
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


ADAPTER = """
import gc
from modules import shared
from sd3deploy.webui.host.adapter import SdNext
from sd3deploy.deployment import Deployment
sdnext = next(one.host for one in gc.get_objects() if type(one) is Deployment)
"""


def test_each_folder_of_models_is_there_once_and_an_empty_setting_is_none(host, tmp_path):
    code = ADAPTER + f"""
before = dict(shared.opts.data)
shared.opts.data.update(diffusers_dir={str(tmp_path)!r}, ckpt_dir={str(tmp_path)!r}, hfcache_dir="")
try:
    result = [str(folder) for folder in sdnext.model_folders()]
finally:
    for key in ("diffusers_dir", "ckpt_dir", "hfcache_dir"):
        shared.opts.data.pop(key)
    shared.opts.data.update(before)
"""
    assert host.run(code) == [str(tmp_path)]


@pytest.mark.parametrize(("without", "loads"), [(True, 0), (False, 1)])
def test_the_hosts_own_encoder_is_not_loaded_where_the_host_would_load_none(host, without, loads):
    code = ADAPTER + f"""
seen, real = [], sdnext.load_default
sdnext.load_default = lambda *values, **words: seen.append(words.get("subfolder")) or "an encoder"
shared.opts.data["model_sd3_disable_te5"] = {without}
try:
    result = [sdnext.default_encoder(), seen]
finally:
    sdnext.load_default = real
    del shared.opts.data["model_sd3_disable_te5"]
"""
    assert host.run(code) == (["an encoder", ["text_encoder_3"]] if loads else [None, []])


def test_without_a_loader_of_the_hosts_there_is_no_encoder_of_its_own(host):
    assert host.run(ADAPTER + """
real, sdnext.load_default = sdnext.load_default, None
try:
    result = [sdnext.default_encoder()]
finally:
    sdnext.load_default = real
""") == [None]


def test_an_installation_that_changes_nothing_refreshes_nothing(host):
    """Packages that were there before the host's pip ran, and are there as they were, are nobody's business."""
    assert host.run("""
import gc, installer
from sd3deploy.deployment import Deployment
seen, deployment = [], next(one for one in gc.get_objects() if type(one) is Deployment)
real = deployment.installed
deployment.installed = lambda names: seen.extend(names)
try:
    installer.pip("list --format=freeze", ignore=True, quiet=True)
finally:
    deployment.installed = real
result = seen
""") == []
