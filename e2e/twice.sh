#!/bin/bash
# Run a test command; what failed gets one second run, alone. A test that needed it is named at the end and in
# reports/second-run-<name>.txt: a flaw to mend, not to forget. What fails twice fails the run.
# usage: twice.sh NAME COMMAND...
set -u
name=$1
shift
mkdir -p reports
rm -f "reports/second-run-$name.txt"
"$@" -o cache_dir=".pytest_cache/$name"
code=$?
[ "$code" -eq 1 ] || exit "$code" # 0 passed; others than 1 are no test failures
"$PWD/.venv/bin/python" - "$name" <<'PY'
import json, pathlib, sys
name = sys.argv[1]
failed = sorted(json.loads(pathlib.Path(f".pytest_cache/{name}/v/cache/lastfailed").read_text()))
pathlib.Path(f"reports/second-run-{name}.txt").write_text("\n".join(failed) + "\n")
PY
echo "== second run of $(wc -l <"reports/second-run-$name.txt") failed test(s)"
"$@" -o cache_dir=".pytest_cache/$name" --last-failed
code=$?
[ "$code" -eq 0 ] && { echo "== passed only in the second run:"; cat "reports/second-run-$name.txt"; }
exit "$code"
