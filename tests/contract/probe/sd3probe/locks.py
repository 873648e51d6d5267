"""A double of the two locks of deployment/locks.py: it notes every acquisition, and what breaks their rules. In the tests' own process, and
in the server's, where it also stands in place of the host's queue.
"""

import sys
import threading
from collections import deque

LONGEST_S = 1.0  # no wait may be longer without a look at Cancel

acquisitions = deque(maxlen=10_000)  # (thread, lock, timeout, how it is held)
violations = []
_queue_of = {}  # thread → the queue that it has taken, by deployment/locks.py or, in a server, by the host itself
_busy_of = {}  # thread → how often it has Busy


class Queue:
    """The host's queue, which knows the thread that has it. threading.Lock for whoever uses it."""

    def __init__(self, lock):
        self.lock, self.owner = lock, None

    def acquire(self, blocking=True, timeout=-1):
        mine = self.lock.acquire(blocking, timeout)
        if mine:
            self.owner = threading.get_ident()
            _queue_of[self.owner] = self
        return mine

    def release(self):
        _queue_of.pop(self.owner, None)
        self.owner = None
        self.lock.release()

    def locked(self):
        return self.lock.locked()

    __enter__ = acquire

    def __exit__(self, *_):
        self.release()


def install(locks):
    """Note what the module `locks` does from here on."""
    if hasattr(locks, "doubled"):
        return
    locks.doubled = True
    ours = set()  # threads that have the queue by deployment/locks.py
    acquire, release = locks._acquire, locks._release
    begin, end, enter, leave = locks.Busy.acquire, locks.Busy.release, locks.Busy.__enter__, locks.Busy.__exit__

    def note(lock, timeout):
        me = threading.get_ident()
        acquisitions.append((threading.current_thread().name, lock, timeout, "queue" if me in _queue_of else ""))
        if not 0 <= timeout <= LONGEST_S:
            violations.append(f"{lock}: waits for {timeout} s without a look at Cancel")
        return me

    def taking(queue, seconds):
        me = note("queue", seconds)
        if _busy_of.get(me):
            violations.append("queue: taken by a thread that has Busy, which is the wrong order")
        if me in _queue_of:
            violations.append("queue: taken twice by one thread, which would wait for ever")
        mine = acquire(queue, seconds)
        if mine:
            ours.add(me)
            _queue_of[me] = queue
        return mine

    def giving(queue):
        ours.discard(threading.get_ident())
        _queue_of.pop(threading.get_ident(), None)
        release(queue)

    def beginning(self, timeout):
        me = note("busy", timeout)
        if me in ours and timeout:
            violations.append("busy: waited for with the queue held")
        mine = begin(self, timeout)
        if mine:
            _busy_of[me] = _busy_of.get(me, 0) + 1
        return mine

    def ending(self):
        _busy_of[threading.get_ident()] -= 1
        end(self)

    def entering(self):
        me = note("load", 0)
        changing = self._changing and self._changing[0] != me and not self._loads[self._changing[0]]
        if changing and me in _queue_of:
            violations.append("load: waits for a change with the queue held")
        enter(self)
        _busy_of[me] = _busy_of.get(me, 0) + 1

    def leaving(self, *error):
        _busy_of[threading.get_ident()] -= 1
        leave(self, *error)

    locks._acquire, locks._release = taking, giving
    locks.Busy.acquire, locks.Busy.release, locks.Busy.__enter__, locks.Busy.__exit__ = beginning, ending, entering, leaving


def install_in_host(call_queue):
    """Put a queue that knows its owner in place of the host's, in every module that has it; before the host has made its API."""
    if isinstance(call_queue.queue_lock, Queue):
        return
    original, double = call_queue.queue_lock, Queue(call_queue.queue_lock)
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("queue_lock") is original:
            module.queue_lock = double
