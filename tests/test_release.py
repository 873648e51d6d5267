from pathlib import Path

import sd3deploy

ROOT = Path(__file__).parent.parent


def test_the_changelog_begins_with_this_version():
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    headings = headings[1:] if headings[0] == "## Unreleased" else headings
    assert headings[0] == f"## {sd3deploy.__version__}"


def test_the_script_folders_hold_what_the_host_may_load_and_nothing_else():
    """The host loads every file in them."""
    assert [path.name for path in (ROOT / "scripts").glob("*.py")] == ["sd3_deploy.py"]
    assert all(path.name.startswith("sd3_") and path.suffix == ".js" for path in (ROOT / "javascript").iterdir())
