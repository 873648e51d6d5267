"""One setting: its default, its widget, and what happens when it changes."""


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, onchange=None, section=None, refresh=None, folder=False,
                 submit=None, comment_before="", comment_after="", category_id=None, *args, **kwargs):  # fmt: skip
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.onchange, self.section, self.refresh, self.folder, self.submit = onchange, section, refresh, folder, submit
        self.comment_before, self.comment_after = comment_before, comment_after
        self.dynamic = callable(component_args)
        fixed = {} if self.dynamic else component_args or {}
        self.visible = fixed.get("visible", True) and len(label) > 2  # a label of one or two letters hides the setting

    def args(self):
        """Arguments of the widget, computed now."""
        return (self.component_args() if self.dynamic else self.component_args) or {}

    def info(self, text):
        self.comment_after += f"<span class='info'>({text})</span>"
        return self

    def html(self, text):
        self.comment_after += f"<span class='info'>{text}</span>"
        return self

    def link(self, label, uri):
        self.comment_before += f"[<a href='{uri}' target='_blank'>{label}</a>]"
        return self

    def js(self, label, function):
        self.comment_before += f"[<a onclick='{function}(); return false'>{label}</a>]"
        return self

    def needs_restart(self):
        return self.info("requires restart")

    def needs_reload_ui(self):
        return self

    def validate(self, opt, value):
        """Only bounds are enforced; a value outside of the choices is kept."""
        try:
            args = self.args()
        except Exception:  # while the host starts, lists of models are not there yet
            args = {}
        low, high = args.get("minimum"), args.get("maximum")
        try:
            return not ((low is not None and value < low) or (high is not None and value > high))
        except TypeError:
            return False


def options_section(section, options):
    for info in options.values():
        info.section = section[:2]
    return options
