"""Memory in GiB, as the host's log and monitor show it."""

import psutil
import torch

from modules import devices

gib = 2**30


def memory_stats():
    """{'ram': {...}, 'gpu': {...}} in GiB; without CUDA the gpu part is zero with an 'error'."""
    memory = psutil.virtual_memory()
    ram = {"used": round(psutil.Process().memory_info().rss / gib, 2), "total": round(memory.total / gib, 2)}
    if devices.backend != "cuda":
        return {"ram": ram, "gpu": {"used": 0, "total": 0, "error": "unavailable"}}
    free, total = torch.cuda.mem_get_info(devices.device)
    return {"ram": ram, "gpu": {"used": round((total - free) / gib, 2), "total": round(total / gib, 2), "retries": 0, "oom": 0}}


def reset_stats():
    pass


class MemUsageMonitor:
    def __init__(self, name, device):
        self.name, self.device, self.disabled = name, device, not torch.cuda.is_available()

    def reset(self):
        if not self.disabled:
            torch.cuda.reset_peak_memory_stats(self.device)

    def summary(self):
        return f"| RAM {memory_stats()['ram']['used']} GB"
