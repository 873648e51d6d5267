"""Which press of Generate is being worked on. The page makes up the id, "task(…)"; requests of the API have none."""

current_task = None


def add_task_to_queue(id_job): ...


def start_task(id_task):
    global current_task
    current_task = id_task


def record_results(id_task, res): ...


def finish_task(id_task):
    global current_task
    if current_task == id_task:
        current_task = None
