"""A worker without a file system, for the supervisor's tests. The document's options say how it behaves:
`fail=<code>`, `die` (before it is ready), `die-later` (when told to quiesce), `stubborn` (ignores SIGTERM), `chatter`
(says things that are no events). It writes what it was given to the file that `meta_url` names.
"""

import json
import os
import signal
import sys
import time

document = json.loads(sys.stdin.readline())
with open(document["meta_url"] + ".new", "w") as file:
    json.dump({"document": document, "argv": sys.argv, "pid": os.getpid(), "environment": dict(os.environ)}, file)
os.rename(document["meta_url"] + ".new", document["meta_url"])
options = document["options"]


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def stop(_number: int, _frame: object) -> None:
    if "stubborn" not in options:
        say(event="flushed", dirty_bytes=0)
        os._exit(0)


signal.signal(signal.SIGTERM, stop)
for option in options:
    if option.startswith("fail="):
        say(event="error", code=option[5:], message="No such volume.", retryable=False)
        sys.exit(1)
if "die" in options:
    sys.exit(3)
if "chatter" in options:
    print("loading...", flush=True)
    print("[1, 2]", flush=True)
say(event="ready", sid=1, pid=os.getpid())
for line in sys.stdin:
    if json.loads(line)["command"] == "quiesce":
        if "die-later" in options:
            os._exit(4)
        say(event="flushed", dirty_bytes=0)
while "stubborn" in options:
    time.sleep(60)
