#!/usr/bin/env bash
# Build wheel and sdist, install the wheel with each extra alone in an empty environment, and try what it promises.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
$python -m venv "$folder/build"
"$folder/build/bin/pip" install --quiet build
rm -rf dist
"$folder/build/bin/python" -m build --outdir dist . > "$folder/build.log" || { cat "$folder/build.log"; exit 1; }
ls -l dist
wheel=$(ls dist/*.whl)
extras=("$@")
[ ${#extras[@]} -gt 0 ] || extras=(core runs sb3 cli explorer trackers envs fast llm ray docs dev all)
for extra in "${extras[@]}"; do
  rm -rf "$folder/env"
  $python -m venv "$folder/env"
  wanted=$wheel; [ "$extra" = core ] || wanted="$wheel[$extra]"
  "$folder/env/bin/pip" install --quiet -c constraints.txt "$wanted"
  (cd "$folder" && "$folder/env/bin/python" "$OLDPWD/packaging/smoke.py" "$extra" > "$folder/smoke.log" 2>&1) \
    && echo "$extra: $(tail -1 "$folder/smoke.log")" || { echo "$extra: FAILED"; tail -20 "$folder/smoke.log"; failed=1; }
done
# The sdist builds the same wheel.
rm -rf "$folder/env"; $python -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet -c constraints.txt dist/*.tar.gz
(cd "$folder" && "$folder/env/bin/python" "$OLDPWD/packaging/smoke.py" core) > /dev/null && echo "sdist: ok"
exit "${failed:-0}"
