"""Gives generated requests something that exists, so that they get past the first 404.

One of four keeps what was generated. Requests that are meant to be wrong are left alone.
"""

import itertools
import os

import schemathesis

SESSION = os.environ["SESSION"]
RUN = os.environ["RUN"]
PROJECT_PATH = os.environ["PROJECT_PATH"]
COUNT = itertools.count()


def is_meant_well(case):
    mode = getattr(getattr(case.meta, "generation", None), "mode", None)
    return mode is not None and mode.value == "positive"


@schemathesis.hook
def before_call(context, case, kwargs):
    path, method = case.operation.path, case.operation.method.upper()
    if (method, path) == ("DELETE", "/api/v1/sessions/{id}"):
        # Ids from earlier answers are tried, too; this session stays until the end.
        if case.path_parameters.get("id") == SESSION:
            case.path_parameters["id"] = "0"
        return
    if not is_meant_well(case) or next(COUNT) % 4 == 0:
        return
    if path.startswith("/api/v1/sessions/{id}"):
        case.path_parameters["id"] = SESSION
    if path.startswith("/api/v1/runs/{id}"):
        case.path_parameters["id"] = RUN
    if path == "/api/v1/runs/{id}/events/{seq}":
        case.path_parameters["seq"] = 1
    if path.startswith("/api/v1/projects/"):
        case.path_parameters["id"] = "1"
    if path == "/api/v1/folders" and case.query:
        case.query["path"] = PROJECT_PATH
    if (method, path) == ("POST", "/api/v1/sessions") and isinstance(case.body, dict):
        case.body["provider"] = "command"
        case.body["projectPath"] = PROJECT_PATH
