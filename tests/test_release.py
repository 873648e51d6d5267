"""What is published: the changelog, the folders that the host loads, and a release that is made, unpacked and used."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sd3deploy
from demo import server
from publish import release

ROOT = Path(__file__).parent.parent


def test_the_changelog_begins_with_this_version():
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert headings[headings[0] == "## Unreleased"] == f"## {sd3deploy.__version__}"


def test_the_script_folders_hold_what_the_host_may_load_and_nothing_else():
    """The host loads every file in them."""
    assert [path.name for path in (ROOT / "scripts").glob("*.py")] == ["sd3_deploy.py"]
    assert all(path.name.startswith("sd3_") and path.suffix == ".js" for path in (ROOT / "javascript").iterdir())


@pytest.mark.parametrize(
    ("version", "before", "expected"),
    [
        ("0.1.1", "0.1.0", True),
        ("0.10.0", "0.9.9", True),
        ("1.0.0", "0.9.9", True),
        ("0.1.0", "0.1.0", False),
        ("0.0.9", "0.1.0", False),
        ("1.0", "0.1.0", False),
        ("01.0.0", "0.1.0", False),
        ("v1.0.0", "0.1.0", False),
        ("1.0.0rc1", "0.1.0", False),
        ("1.0.0\n", "0.1.0", False),
    ],
)
def test_a_version_is_three_numbers_after_the_last(version, before, expected):
    assert release.newer(version, before) is expected


def test_notes_are_what_stands_below_unreleased():
    assert release.notes("# Changelog\n\n## Unreleased\n\n- New.\n- Better.\n\n## 0.1.0\n\n- Old.\n") == "- New.\n- Better."
    for nothing in ("## Unreleased\n\n## 0.1.0\n\n- Old.\n", "## 0.1.0\n\n- Old.\n\n## Unreleased\n\n- Lost.\n"):
        with pytest.raises(release.Refused, match="Unreleased"):
            release.notes(nothing)


def test_the_entry_for_the_index_is_found_by_its_address():
    entry = release.index_entry("https://github.com/somebody/sd-extension-sd3.git")
    assert entry["url"] == "https://github.com/somebody/sd-extension-sd3"
    assert set(entry) == {"url", "name", "description"}  # what the index does not know otherwise
    assert 20 < len(entry["description"]) <= 200
    with pytest.raises(release.Refused, match="--url"):
        release.index_entry("")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A repository of its own with this tree as its only commit, which begins with something unreleased."""
    if not shutil.which("git"):
        pytest.skip("no git")
    folder = tmp_path_factory.mktemp("release") / "tree"
    left = shutil.ignore_patterns(".git", ".venv", ".cache", "build", "__pycache__", "node_modules", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=left)
    log = folder / "CHANGELOG.md"
    words = log.read_text(encoding="utf-8")
    if "## Unreleased\n" not in words:
        log.write_text(words.replace("## ", "## Unreleased\n\n- Something.\n\n## ", 1), encoding="utf-8")
    git(folder, "init", "--quiet")
    own = {"user.name": "Somebody", "user.email": "somebody@example.org", "commit.gpgsign": "false", "tag.gpgsign": "false"}
    for key, value in own.items():
        git(folder, "config", key, value)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "All")
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def make(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "publish.release", *words], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def released(tree):
    """The tree after its release 98.7.6: the folder with what was made."""
    done = make(tree, "98.7.6", "--url", "https://github.com/somebody/sd-extension-sd3")
    assert done.returncode == 0, done.stderr
    return tree / "build"


def test_a_release_says_why_it_is_refused_and_changes_nothing(tree):
    before = git(tree, "rev-parse", "HEAD"), git(tree, "tag")
    (tree / "new.txt").write_text("")
    assert "not committed" in make(tree, "98.7.5", "--url", "https://github.com/a/b").stderr
    (tree / "new.txt").unlink()
    assert "is no version after" in make(tree, "0.0.1", "--url", "https://github.com/a/b").stderr
    assert "--url" in make(tree, "98.7.5").stderr  # it has no remote
    assert (git(tree, "rev-parse", "HEAD"), git(tree, "tag"), git(tree, "status", "--porcelain")) == (*before, "")


def test_a_release_is_a_commit_a_tag_and_what_the_changelog_says(released):
    tree = released.parent
    assert '__version__ = "98.7.6"' in git(tree, "show", "v98.7.6:sd3deploy/__init__.py")
    headings = re.findall("^## .+$", git(tree, "show", "v98.7.6:CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "## 98.7.6"
    assert "## Unreleased" not in headings
    message = git(tree, "tag", "--list", "--format=%(contents)", "v98.7.6")
    assert message.startswith("98.7.6\n\n- ")
    assert git(tree, "status", "--porcelain") == ""
    assert git(tree, "log", "-1", "--format=%s") == "Version 98.7.6"
    assert "already" in make(tree, "98.7.6").stderr
    (entry,) = json.loads((released / "extension-index.json").read_text(encoding="utf-8"))
    assert entry["url"] == "https://github.com/somebody/sd-extension-sd3"


def test_the_zip_has_what_a_user_needs_and_no_tests(released):
    names = zipfile.ZipFile(released / "sd-extension-sd3-98.7.6.zip").namelist()
    assert all(name.startswith("sd-extension-sd3/") for name in names)
    inside = {name.removeprefix("sd-extension-sd3/") for name in names}
    assert {"extension.py", "install.py", "scripts/sd3_deploy.py", "sd3deploy/messages/zh.json", "LICENSE"} <= inside
    assert not {name.split("/")[0] for name in inside} & {"tests", "demo", "dev.py", "publish", ".github", ".ci", "build"}
    assert [name for name in inside if "test" in Path(name).name] == []


def test_the_pages_in_the_zip_link_to_what_is_in_it(released, tmp_path):
    folder = unpacked(released, tmp_path)
    pages = [path for path in folder.rglob("*.md") if path.parent.name in ("docs", folder.name)]
    assert len(pages) > 20
    for path in pages:
        for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (path.parent / target).exists(), (path.name, target)


def unpacked(released: Path, place: Path) -> Path:
    with zipfile.ZipFile(released / "sd-extension-sd3-98.7.6.zip") as file:
        file.extractall(place)
    return place / "sd-extension-sd3"


@pytest.mark.xdist_group("release")
def test_the_unpacked_zip_installs_and_makes_a_picture(released, tmp_path):
    """As a user does who has no git: unpack into extensions, start. The host runs install.py before."""
    data = server.data_folder(tmp_path / "data", extension=None)
    folder = unpacked(released, data / "extensions")
    done = subprocess.run([sys.executable, "install.py"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    host = server.start(data)
    try:
        assert host.apply(sd3_text_encoder="T5 Q4") != ""
        assert host.get("/sdapi/v1/sd3/status")["encoder"] == "T5 Q4"
        report = host.get("/sdapi/v1/sd3/report")
        assert "98.7.6" in json.dumps(report)
        made = host.txt2img()
        assert made["images"]
        assert "T5: T5 Q4" in made["info"]["infotexts"][0]
    finally:
        host.stop()
