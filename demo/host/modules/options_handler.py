"""All settings: kept in memory, in config.json, and changed with a callback that may refuse."""

import json
import os
import threading

from modules import cmd_args, errors
from modules.logger import log

cmd_opts = cmd_args.parse_args()
_saving = threading.Lock()
SECRET_ENDINGS = ("_version", "_token", "_key", "_secret", "_password")


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


class Options:
    typemap = {int: float}

    def __init__(self, templates, restricted=(), *, filename="", secrets=""):
        super().__setattr__("data_labels", templates)
        super().__setattr__("data", {key: info.default for key, info in templates.items()})
        super().__setattr__("secrets", {})
        super().__setattr__("filename", filename or cmd_opts.config)
        super().__setattr__("secretsfn", secrets or cmd_opts.secrets)
        self.load()

    def __getattr__(self, key):
        for place in (self.__dict__.get("secrets", {}), self.__dict__.get("data", {})):
            if key in place:
                return place[key]
        if key in self.__dict__.get("data_labels", {}):
            return self.data_labels[key].default
        raise AttributeError(f"'Options' object has no attribute '{key}'")

    def get(self, key):
        return getattr(self, key)

    def __setattr__(self, key, value):
        if key in self.data_labels or key in self.data or key in self.secrets:
            (self.secrets if key.endswith(SECRET_ENDINGS) else self.data)[key] = value
        else:
            super().__setattr__(key, value)

    def set(self, key, value, force=False):
        """Store, then call back. Whether it changed: False as well when the callback raised, and the old value is back then."""
        old = (self.secrets if key in self.secrets else self.data).get(key)
        if old is None:
            if key not in self.data_labels:
                log.warning(f"Settings: key={key} value={value} unknown")
                return False
            old = self.data_labels[key].default
        if old == value and not force:
            return False
        setattr(self, key, value)
        callback = self.data_labels[key].onchange if key in self.data_labels else None
        if callback is not None:
            try:
                callback()
            except Exception as err:
                log.error(f"Error in onchange callback: {key} {value} {err}")
                errors.display(err, "Error in onchange callback")
                setattr(self, key, old)
                return False
        return True

    def get_default(self, key):
        return self.data_labels[key].default if key in self.data_labels else None

    def list(self):
        return [key for key, info in self.data_labels.items() if info.visible]

    def onchange(self, key, func, call=True):
        self.data_labels[key].onchange = func
        if call:
            func()

    def add_option(self, key, info):
        self.data_labels[key] = info

    def reorder(self):
        """Keep the settings of one section together."""
        sections = list(dict.fromkeys(info.section for info in self.data_labels.values()))
        self.data_labels = dict(sorted(self.data_labels.items(), key=lambda item: sections.index(item[1].section)))

    def save_atomic(self, silent=False):
        """Write what differs from its default, and every key that nobody knows: its extension may be disabled today."""
        with _saving:
            known = self.data_labels
            changed = {k: v for k, v in {**self.data, **self.secrets}.items() if k not in known or known[k].default != v}
            for path, is_secret in ((self.filename, False), (self.secretsfn, True)):
                values = {k: v for k, v in changed.items() if k.endswith(SECRET_ENDINGS) == is_secret}
                with open(f"{path}.new", "w", encoding="utf-8") as file:
                    json.dump(values, file, indent=2)
                os.replace(f"{path}.new", path)

    def save(self, silent=False):
        threading.Thread(target=self.save_atomic, args=(silent,)).start()

    def same_type(self, x, y):
        return x is None or y is None or self.typemap.get(type(x), type(x)) == self.typemap.get(type(y), type(y))

    def load(self):
        """Values of settings that extensions will add later are unknown here, so nobody ever checks them."""
        if not os.path.isfile(self.filename):
            self.save()
            return
        self.__dict__["data"] = _read(self.filename)
        self.__dict__["secrets"] = _read(self.secretsfn)
        unknown = []
        for key, value in self.data.items():
            info = self.data_labels.get(key)
            if info is None:
                unknown.append(key)
            elif not info.validate(key, value) or not self.same_type(info.default, value):
                log.warning(f"Setting validation: {key}={value}")
                self.data[key] = info.default
        if unknown:
            log.warning(f"Setting validation: unknown={unknown}")

    def dumpjson(self):
        values = {key: self.data.get(key, info.default) for key, info in self.data_labels.items()}
        metadata = {key: {"is_stored": values[key] != info.default, "tab_name": info.section[0]} for key, info in self.data_labels.items()}
        return json.dumps({"values": values, "metadata": metadata})

    def cast_value(self, key, value):
        default = self.data_labels[key].default
        if value is None or default is None or isinstance(value, type(default)):
            return value
        return value == "True" if isinstance(default, bool) else type(default)(value)
