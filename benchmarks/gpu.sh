#!/usr/bin/env bash
# Everything that needs a GPU, on a machine without network: tests, throughput, the 100-epoch study of ABL.
#
#   WHEELS=wheels/ CIFAR10=cifar10-jpeg.tar OUT=results/ benchmarks/gpu.sh [study overrides ...]
#
# WHEELS   folder of wheels (the project's dependencies, hatchling and pytest); empty: use what is installed
# CIFAR10  archive whose one top folder holds train/<class>/*.jpg and test/<class>/*.jpg, or such a folder
# OUT      small result files: tests.txt, throughput.txt, and result.json and metrics.csv of each run
set -euo pipefail
cd "$(dirname "$0")/.."
: "${CIFAR10:?an archive or folder of CIFAR-10}" "${OUT:?a folder for the results}"
work=${WORK:-$(mktemp -d)}
mkdir -p "$OUT"
OUT=$(realpath "$OUT")

python=${PYTHON:-python3}
if [[ -n "${WHEELS:-}" ]]; then
  "$python" -m venv --system-site-packages "$work/venv"
  python="$work/venv/bin/python"
  "$python" -m pip install --quiet --no-index --find-links "$WHEELS" hatchling pytest pytest-timeout
  "$python" -m pip install --quiet --no-index --find-links "$WHEELS" --no-build-isolation .
else
  export PYTHONPATH=src
fi

data=$CIFAR10
if [[ -f "$CIFAR10" ]]; then
  mkdir -p "$work/cifar10"
  tar -xf "$CIFAR10" -C "$work/cifar10" --strip-components=1
  data="$work/cifar10"
fi
export BACKDOOR_CACHE="$work/cache" BENCHMARK_DATA="$data" CI=true

status=0
"$python" -m pytest -m gpu >"$OUT/tests.txt" 2>&1 || status=$?
"$python" benchmarks/throughput.py --cache "$work/cache" --batches 390 >"$OUT/throughput.txt" 2>&1 || status=$?
for attack in ${ATTACKS:-badnets blended sig trojan}; do
  run="$work/runs/$attack"
  "$python" -m backdoor experiment=abl_cifar10_full "attack=$attack" "data.root=$data" \
    "hydra.run.dir=$run" "$@" >"$OUT/$attack.txt" 2>&1 || status=$?
  for file in result.json metrics.csv; do
    [[ -f "$run/$file" ]] && cp "$run/$file" "$OUT/$attack-$file"
  done
done
exit "$status"
