"""The server of the page since 2026-08: the host makes the application and starts uvicorn itself, and gradio's `launch` is not called.

So nothing of what `launch` notes of its server is there: `demo.local_url`, `demo.is_running`, `demo.server_port`.
"""

import threading
import time

import uvicorn
from gradio.routes import App

from modules.logger import log


def application(demo, *, auth, max_threads, show_api, allowed_paths, app_kwargs):
    """The page as an application that nobody serves yet."""
    demo.auth, demo.auth_message, demo.show_api, demo.allowed_paths, demo.blocked_paths = auth, None, show_api, allowed_paths, []
    demo.favicon_path, demo.root_path, demo.show_error = None, "", False
    demo.validate_queue_settings()
    demo.config = demo.get_config_file()
    demo.max_threads = max(demo._queue.max_thread_count, max_threads)
    app = App.create_app(demo, app_kwargs=app_kwargs)
    demo._queue.set_server_app(app)
    app.add_event_handler("startup", demo.startup_events)
    return app


class Server(uvicorn.Server):
    """uvicorn on a thread; `wants_restart` is read when it has ended."""

    def __init__(self, app, host, port):
        super().__init__(uvicorn.Config(app, host=host or "127.0.0.1", port=port, log_level="warning", ws_max_size=2**30))
        self.thread, self.wants_restart = threading.Thread(target=self.run, daemon=True), False

    def install_signal_handlers(self):  # on a thread there are none
        pass

    def start(self):
        self.thread.start()
        while not self.started and self.thread.is_alive():
            time.sleep(0.01)
        log.info(f"Local URL: http://{self.config.host}:{self.config.port}/")

    def close(self):
        self.should_exit = self.force_exit = True
        self.thread.join()
