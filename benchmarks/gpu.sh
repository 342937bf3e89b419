#!/bin/bash
# What one GPU does with all of this, on a machine that has torch and no network: results and note below $OUT.
#
#   bash benchmarks/gpu.sh                          everything, 480 seconds; options go to benchmarks/gpu.py
#   bash benchmarks/gpu.sh --small --seconds 90     a look at whether it runs there
#
#   OUT      folder for results, note and log (default: gpu-out)
#   WHEELS   folder with wheels of the packages that the machine lacks (open_clip_torch, zarr, av, …); none by default
#   EARLIER  results (JSON lines) of an earlier call, to go on from: its sections are not run again
set -u -o pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-out} python=${PYTHON:-python3} site=${SITE:-/tmp/glscl-gpu-site}
mkdir -p "$out"
if [ ! -e "$site/glscl" ]; then  # installed once; a second call on the same machine finds it
  mkdir -p "$site"
  if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$WHEELS"/*.whl || exit 1
  fi
fi
ln -sfn "$PWD" "$site/glscl"  # the package is this folder, whatever it is called
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
name=gpu
case " $* " in *" --small "*) name=gpu-small ;; esac
results=$out/$name.jsonl
if [ -n "${EARLIER:-}" ] && [ -f "$EARLIER" ] && [ ! -e "$results" ]; then cp "$EARLIER" "$results"; fi
"$python" benchmarks/gpu.py --seconds 480 --results "$results" --note "$out/$(date +%F)-$name.md" "$@" 2>&1 | tee -a "$out/$name.log"
status=$?
cat "$out/$(date +%F)-$name.md"
exit $status
