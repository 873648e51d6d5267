"""Every failure of a request has the same shape of answer."""

import time

from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import HTTPException
from starlette.responses import JSONResponse

from modules import errors
from modules.api.validate import validate_request
from modules.logger import log


def setup_middleware(app):
    app.user_middleware = [entry for entry in app.user_middleware if entry.cls.__name__ != "CORSMiddleware"]
    app.middleware_stack = None  # or nothing can be added to a running app

    def failure(request, e):
        code = getattr(e, "status_code", 500)
        answer = {"error": type(e).__name__, "code": code, "detail": getattr(e, "detail", ""), "errors": str(e)}
        answer["body"] = getattr(e, "body", "")
        if code != 429:
            log.error(f"API error: {request.method}: {request.url} {answer}")
        if not isinstance(e, HTTPException):
            errors.display(e, "HTTP API")
        return JSONResponse(status_code=code, content=jsonable_encoder(answer))

    @app.middleware("http")
    async def preprocess(request, call_next):
        try:
            start = time.time()
            response = await call_next(request)
            response.headers["X-Process-Time"] = str(round(time.time() - start, 4))
            validate_request((request.client.host if request.client else "0"), request.scope.get("path", ""))
            return response
        except BaseException as e:
            return failure(request, e)

    @app.exception_handler(HTTPException)
    async def http_exception(request, e):
        return failure(request, e)

    app.build_middleware_stack()
