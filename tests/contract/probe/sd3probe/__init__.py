"""What the probe has seen inside of the host. Scripts are not in sys.modules; this package is."""

import threading

events = []  # (name, facts)
switches = {}  # what the probe's hooks should do in the next job


def note(name, /, **facts):
    events.append((name, {"thread": threading.current_thread().name, **facts}))


def since(start=0):
    return [name for name, _ in events[start:]]
