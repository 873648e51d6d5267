"""What the server is doing now. `begin` of any job forgets an interrupt that came before it."""

import datetime
import time
import uuid


class State:
    def __init__(self):
        self.skipped = self.interrupted = self.paused = False
        self.api = False
        self.server_start = time.time()
        self.textinfo = None
        self.state_history = []
        self.total_jobs = 0
        self.sampling_step = self.sampling_steps = 0
        self.current_image = None
        self.clear()

    def clear(self):
        self.id, self.job = "", ""
        self.job_count = self.job_no = self.batch_no = self.batch_count = 0
        self.job_timestamp = "0"
        self.time_start = None
        self.paused = False
        self.results = []

    def begin(self, title="", task_id=0, api=None):
        self.clear()
        self.interrupted = self.interrupted if title.startswith("Save") else False
        self.skipped = False
        self.sampling_step = self.sampling_steps = 0
        self.id = str(task_id) if task_id else uuid.uuid4().hex[:15]
        self.job, self.job_count = title, 1
        self.total_jobs += 1
        self.api = bool(api)
        self.textinfo = None
        self.time_start = time.time()
        self.job_timestamp = datetime.datetime.now().strftime("%Y%m%d%H%M%S")
        self.state_history.append({"id": self.id, "job": title.lower(), "op": "begin", "timestamp": self.time_start})
        return self.id

    def end(self, task_id=None, api=None):
        if api is not None:
            self.api = api
        self.state_history.append({"id": task_id or self.id, "job": self.job.lower(), "op": "end", "timestamp": time.time()})
        self.clear()

    def update(self, job, steps=0, jobs=0):
        self.sampling_steps += steps * jobs
        self.job_count += jobs

    def step(self, step=1):
        self.sampling_step += step

    def nextjob(self):
        self.job_no += 1

    def interrupt(self):
        self.interrupted = True

    def skip(self):
        self.skipped = True

    def dict(self):
        names = ("skipped", "interrupted", "job", "job_count", "job_timestamp", "job_no", "sampling_step", "sampling_steps")
        return {name: getattr(self, name) for name in names}
