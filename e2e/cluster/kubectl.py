"""kubectl as a program: the one way in which the demo and the scenarios speak to a cluster, as their readers would.

Waiting is left to `kubectl wait` and `rollout status` (they watch) where those can express it; `until` polls for the rest.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Document = Mapping[str, Any]
SECONDS = 180.0  # of every wait, unless the caller gives another; reached only when something is broken


class KubectlError(Exception):
    """kubectl ended with an error; the text is its command and what it said."""


class Timeout(Exception):
    """A condition did not come true in time; the text says which and what was seen last."""


def program() -> str:
    """The kubectl of this virtual environment, else the machine's."""
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if not found:
        raise KubectlError("There is no kubectl: neither in the virtual environment nor on PATH.")
    return found


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl with a way to reach a cluster (`prefix` runs it there) and a namespace; without one, documents name their own."""

    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    namespace: str | None = None

    def into(self, namespace: str) -> "Kubectl":
        return replace(self, namespace=namespace)

    def command(self, *arguments: str) -> list[str]:
        return [*self.prefix, program(), *(["-n", self.namespace] if self.namespace else []), *arguments]

    def process(
        self, *arguments: str, given: str | None = None, timeout: float = SECONDS + 60
    ) -> subprocess.CompletedProcess[str]:
        """Runs to the end and returns whatever came out of it."""
        return subprocess.run(
            self.command(*arguments),
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            env=dict(self.environment),
            timeout=timeout,
            check=False,
        )

    def __call__(self, *arguments: str, given: str | None = None, timeout: float = SECONDS + 60) -> str:
        """Standard output; raises KubectlError with standard error when the command fails."""
        done = self.process(*arguments, given=given, timeout=timeout)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """The object or list as parsed JSON."""
        return json.loads(self("get", *arguments, "-o", "json"))

    def find(self, kind: str, name: str) -> Any | None:
        """The object, or None when it does not exist."""
        text = self("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def items(self, *arguments: str) -> list[Any]:
        items: list[Any] = self.get(*arguments)["items"]
        return items

    def apply(self, *documents: Document, dry_run: bool = False) -> str:
        return self("apply", "-f", "-", *(["--dry-run=server"] if dry_run else []), given=as_list(documents))

    def delete(self, *documents: Document, wait: bool = True) -> None:
        """Deletes what the documents name, if it exists; `wait` until it is gone."""
        options = ["--ignore-not-found", f"--wait={str(wait).lower()}", f"--timeout={SECONDS:.0f}s"]
        self("delete", "-f", "-", *options, given=as_list(documents))

    def wait(self, what: str, condition: str, seconds: float = SECONDS) -> None:
        """`kubectl wait`: `condition` is what `--for` takes, as `condition=Ready` or `delete`."""
        self("wait", what, f"--for={condition}", f"--timeout={seconds:.0f}s", timeout=seconds + 30)

    def exec(self, pod: str, *command: str, container: str | None = None) -> str:
        return self("exec", pod, *(["-c", container] if container else []), "--", *command)

    def sh(self, pod: str, script: str, container: str | None = None) -> str:
        """Standard output of a shell script in the pod; raises KubectlError when it ends with an error."""
        return self.exec(pod, "sh", "-c", script, container=container)

    def logs(self, pod: str, *arguments: str) -> str:
        return self("logs", pod, *arguments)

    def events(self, about: str) -> list[tuple[str, str]]:
        """Reason and message of each event about the object of that name in this namespace."""
        events = self.items("events", f"--field-selector=involvedObject.name={about}")
        return [(event.get("reason") or "", event.get("message") or "") for event in events]

    def watch(self, *arguments: str) -> Iterator[tuple[float, Any]]:
        """The object and each change of it with the time (`time.monotonic()`) at which it was seen; ends with its deletion."""
        command = self.command("get", *arguments, "--watch", "--output-watch-events", "-o", "json")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(self.environment)) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:  # one event per line
                    seen, event = time.monotonic(), json.loads(line)
                    yield seen, event["object"]
                    if event["type"] == "DELETED":
                        return
            finally:
                process.terminate()


def as_list(documents: Iterable[Document]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})


def until(what: str, look: Callable[[], T | None], seconds: float = SECONDS, pause: float = 0.3) -> T:
    """What `look` returns once that is true; errors of kubectl count as not yet. Raises Timeout."""
    deadline = time.monotonic() + seconds
    while True:
        seen: T | Exception | None
        try:
            seen = look()
            if seen:
                return seen
        except KubectlError as error:
            seen = error
        if time.monotonic() > deadline:
            raise Timeout(f"{what}: not within {seconds:.0f} s; last seen: {seen!r}")
        time.sleep(pause)
