"""A W&B server on this machine's loopback, as much of it as W&B's own client needs to upload runs and to read them.

The client is the real one in both directions; what is ours is only how the server answers. Runs are kept as the client
sends them: a configuration and a summary as JSON texts, history lines by their offsets.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "me"
VIEWER = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}


@dataclass
class Stored:
    """One run as the server holds it."""

    project: str
    name: str
    config: str = "{}"
    summary: str = "{}"
    history: dict[int, str] = field(default_factory=dict)
    state: str = "running"

    @property
    def steps(self) -> list[int]:
        return [json.loads(line)["_step"] for line in self.history.values()]

    def node(self) -> dict[str, Any]:
        """What GraphQL gives out."""
        empty = dict.fromkeys(("sweepName", "group", "jobType", "commit", "description", "notes"))
        return {
            **empty,
            "id": f"stored-{self.name}",
            "projectId": "1",
            "tags": [],
            "name": self.name,
            "displayName": self.name,
            "state": self.state,
            "config": self.config,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": "2026-01-01T00:00:00",
            "systemMetrics": "{}",
            "summaryMetrics": self.summary,
            "historyLineCount": len(self.history),
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": {"lastStep": max(self.steps, default=-1), "sets": [], "keys": {}},
        }

    def resumable(self) -> dict[str, Any]:
        """What a resuming client asks for."""
        return {
            **self.node(),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps(list(self.history.values())[-1:]),
            "eventsTail": "[]",
            "wandbConfig": '{"t": 1}',
        }


class Server(ThreadingHTTPServer):
    """`runs` by (project, id); `received`: every request's body, to be searched for what must not be sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[tuple[str, str], Stored] = {}
        self.received: list[str] = []
        self.operations: list[str] = []
        self.unknown: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client drops its connections when it ends."""

    def answer(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL operation with variables `v`."""
        self.operations.append(operation)
        project = str(v.get("project"))
        run = self.runs.get((project, str(v.get("name", v.get("run", v.get("runName"))))))
        match operation:
            case "Viewer" | "GetDefaultEntity":
                return {"viewer": VIEWER}
            case "UpsertBucket":
                new = run is None
                run = self.runs.setdefault((project, v["name"]), Stored(project, v["name"]))
                run.config, run.state = v["config"] or run.config, "running"
                where = {"id": "1", "name": project, "entity": {"id": "1", "name": ENTITY}}
                return {"upsertBucket": {"bucket": {**run.node(), "project": where}, "inserted": new}}
            case "RunResumeStatus":
                where = {"id": "1", "name": project, "internalId": "1", "entity": {"id": "1", "name": ENTITY}}
                return {"model": {**where, "bucket": run and run.resumable()}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in v["files"]]
                return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}
            case "Runs":
                runs = [each.node() for each in self.runs.values() if each.project == project]
                if not runs:
                    return {"project": None}
                first = int(v["cursor"] or 0)
                page = runs[first : first + v["perPage"]]
                last = str(first + len(page))
                return {
                    "project": {
                        "internalId": "1",
                        "runCount": len(runs),
                        "readOnly": False,
                        "runs": {
                            "edges": [{"node": node, "cursor": last} for node in page],
                            "pageInfo": {"endCursor": last, "hasNextPage": int(last) < len(runs)},
                        },
                    }
                }
            case "Run" | "RunHistoryKeys":
                return {"project": {"run": run and run.node()}}
            case "RunParquetHistory":
                return {"project": {"run": {"parquetHistory": {"parquetUrls": []}}}}
            case "HistoryPage":
                assert run is not None
                steps = range(v["minStep"], v["maxStep"])
                # Like W&B's by step; those of one step in no order to be relied on.
                lines = sorted(run.history.values(), key=lambda line: (json.loads(line)["_step"], line))
                return {"project": {"run": {"history": [line for line in lines if json.loads(line)["_step"] in steps]}}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
        self.unknown.add(operation)
        return {}

    def stream(self, run: Stored, content: dict[str, Any]) -> None:
        """A part of a run's history, its summary so far, its end."""
        files = content.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            for offset, line in enumerate(history["content"], start=history["offset"]):
                run.history[offset] = line
        if summary := files.get("wandb-summary.json"):
            run.summary = summary["content"][-1]
        if content.get("complete"):
            run.state = "finished" if content["exitcode"] == 0 else "failed"


class Handler(BaseHTTPRequestHandler):
    """HTTP around `Server.answer` and `Server.stream`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
        self.server.received.append(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            assert operation is not None
            answer = {"data": self.server.answer(operation[1], asked.get("variables") or {})}
        elif match := re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", self.path):
            self.server.stream(self.server.runs[match[1], match[2]], json.loads(body))
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_POST
