"""One job at a time. The lock is a plain one: taking it again in the same thread waits for ever."""

import html
import threading
import time

from modules import errors, progress, shared
from modules.logger import log

queue_lock = threading.Lock()


def get_lock():
    return queue_lock


def wrap_queued_call(func):
    def f(*args, **kwargs):
        with get_lock():
            return func(*args, **kwargs)

    return f


def wrap_gradio_gpu_call(func, extra_outputs=None, name=None):
    def f(*args, **kwargs):
        is_task = bool(args) and isinstance(args[0], str) and args[0].startswith("task(") and args[0].endswith(")")
        id_task = args[0] if is_task else None
        with get_lock():
            progress.start_task(id_task)
            try:
                return func(*args, **kwargs)
            except Exception as e:
                log.error(f"Exception: {e}")
                errors.display(e, "gradio call")
                # The host appends to the list that it was given, so that every later error shows the first message.
                res = extra_outputs or []
                res.append(f"<div class='error'>{html.escape(str(e))}</div>")
                return res
            finally:
                progress.finish_task(id_task)

    return wrap_gradio_call(f, extra_outputs=extra_outputs, add_stats=True, name=name or func.__name__)


def wrap_gradio_call(func, extra_outputs=None, add_stats=False, name=None):
    def f(*args, **kwargs):
        start = time.perf_counter()
        shared.mem_mon.reset()
        job = shared.state.begin(name or func.__name__)
        try:
            res = list(func(*args, **kwargs))
        except Exception as e:
            errors.display(e, "gradio call")
            res = extra_outputs or []
            res.append(f"<div class='error'>{html.escape(type(e).__name__ + ': ' + str(e))}</div>")
        shared.state.end(job)
        if add_stats and isinstance(res[-1], str):
            seconds = time.perf_counter() - start
            res = [*res[:-1], res[-1] + f"<div class='performance'><p>Time: {seconds:.2f}s {shared.mem_mon.summary()}</p></div>"]
        return tuple(res)

    return f
