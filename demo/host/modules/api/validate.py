"""At most so many requests in a minute from one client to one path. The request has been served by then; only its answer is lost."""

import time

from fastapi import HTTPException

request_cost = {"/file": 0, "/run/predict": 0, "/sdapi/v1/txt2img": 5, "/sdapi/v1/img2img": 5}
log_cost = {"/sdapi/v1/log": -1, "/sdapi/v1/version": -1, "/sdapi/v1/progress": 60}
_recent = {}


def validate_request(client, endpoint):
    from modules.shared import opts

    path = endpoint.split("=")[0].split("?")[0]
    cost, now = request_cost.get(path, 1), time.monotonic()
    if opts.server_rate_limit <= 0 or cost <= 0:
        return
    recent = [(at, weight) for at, weight in _recent.get((client, path), []) if now - at < 60]
    recent.append((now, cost))
    _recent[(client, path)] = recent
    if sum(weight for _, weight in recent) > opts.server_rate_limit:
        raise HTTPException(status_code=429, detail=f"{client}:{path}: rate limit exceeded")
