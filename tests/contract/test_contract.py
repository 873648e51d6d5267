"""The table of what the extension leans on in the host is true of the host under test, and costs its start nothing that anybody notices."""

from __future__ import annotations

import shutil

import pytest

from demo import server
from sd3deploy.webui.host.contract import TABLE
from tests.contract.conftest import AUTH, PROBE, ProbedHost, start


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A host with this extension in it, and the probe."""
    folder = tmp_path_factory.mktemp("contract-table")
    data = server.data_folder(folder / "data")
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    started = start(folder, "data", auth=AUTH)
    yield ProbedHost(started.data, started.url, started.process, started.auth)
    started.stop()


def test_the_host_is_as_the_table_has_it(host):
    assert len(host.txt2img()["images"]) == 1
    found = host.run("from sd3deploy.webui.host.reach import state; result = state.data()")
    assert found["moved"] == {}
    assert found["checked"] >= sum(need.kind != "browser" and not need.lazy for need in TABLE)


def test_nothing_is_said_of_a_host_that_is_as_expected(host):
    assert "SD3 Deploy: id=host." not in host.log()


def test_the_report_says_how_much_was_looked_at(host):
    report = host.get("/sdapi/v1/sd3/report")
    assert report["contract"]["moved"] == {}
    assert report["contract"]["checked"] > 100
    text = host.client.get("/sdapi/v1/sd3/report?format=markdown").text
    assert f"{report['contract']['checked']} names of SD.Next looked at, 0 of them not as expected" in text


def test_every_row_can_be_looked_up_in_the_running_host(host):
    """What is lazy or of another place too: after a picture all of it is there."""
    assert host.run("""
        from sd3deploy.webui.host import reach
        from sd3deploy.webui.host.contract import PLACES, TABLE
        result = {need.name: what for need in TABLE if need.place not in PLACES and (what := reach._examined(need))}
        result = {name: what for name, what in result.items() if name not in reach.state.absent}
    """) == {}
