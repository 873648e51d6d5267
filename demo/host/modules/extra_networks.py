"""Networks in a prompt, such as <lora:name:1>: taken out before it is encoded."""

import re

re_extra_net = re.compile(r"<(\w+):([^>]+)>")


def parse_prompt(prompt):
    """The prompt without networks, and what they were: name → arguments."""
    found = {name: args.split(":") for name, args in re_extra_net.findall(prompt or "")}
    return re_extra_net.sub("", prompt or ""), found
