"""The extensions on disk."""

import os
import subprocess

from modules import paths, shared
from modules.logger import log

extensions = []


class Extension:
    def __init__(self, name, path, enabled=True, is_builtin=False):
        self.name, self.path, self.enabled, self.is_builtin = name, path, enabled, is_builtin
        self.remote, self.commit_hash = None, ""

    def read_info(self):
        """The address that it was cloned from and what is checked out; nothing of a folder that is no repository itself."""
        if os.path.exists(os.path.join(self.path, ".git")):
            self.remote = self._git("config", "--get", "remote.origin.url") or None
            self.commit_hash = self._git("rev-parse", "HEAD") if self.remote else ""

    def _git(self, *words):
        return subprocess.run(["git", *words], cwd=self.path, capture_output=True, text=True).stdout.strip()

    def list_files(self, subdir, extension):
        """Files at the top of a folder of the extension; `.priority` in its root orders them among other extensions."""
        from modules.scripts_manager import ScriptFile

        folder, marker = os.path.join(self.path, subdir), os.path.join(self.path, ".priority")
        priority = "50"
        if os.path.isfile(marker):
            with open(marker, encoding="utf-8") as file:
                priority = file.read().strip()
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        found = [ScriptFile(self.path, name, os.path.join(folder, name), priority) for name in names]
        return [file for file in found if os.path.splitext(file.path)[1].lower() == extension and os.path.isfile(file.path)]


def active():
    return [] if shared.opts.disable_all_extensions != "none" else [extension for extension in extensions if extension.enabled]


def list_extensions():
    extensions.clear()
    folder = paths.extensions_dir
    disabled = [name.lower() for name in shared.opts.disabled_extensions]
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) and not shared.cmd_opts.safe else []:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            extensions.append(Extension(name, path, enabled=name.lower() not in disabled))
    log.debug(f"Extensions: disabled={[extension.name for extension in extensions if not extension.enabled]}")
