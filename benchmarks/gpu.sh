#!/usr/bin/env bash
# Everything that needs a GPU, on a machine without network: tests, benchmarks, ABL's 100-epoch study, D-BR, D-ST and DBD at full length.
#
#   WHEELS=wheels/ CIFAR10=cifar10-jpeg.tar OUT=results/ [STEPS="tests abl"] [ATTACKS="badnets sig"] [DEFENSES=dbr] benchmarks/gpu.sh [study overrides ...]
#
# WHEELS   folder of wheels (the project's dependencies, hatchling and pytest); empty: use what is installed
# CIFAR10  archive whose one top folder holds train/<class>/*.jpg and test/<class>/*.jpg, or such a folder
# OUT      small result files: tests.txt, a text for each benchmark, and result.json and metrics.csv of each run
# STEPS    some of tests, benchmarks, abl, defenses (all by default), for machines that are lent for short times
# ATTACKS, DEFENSES   of the studies: abl takes each attack, defenses each defense against each attack (badnets alone by default)
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
study() { # name, then overrides: a run whose small files stay
  local name=$1 file
  shift
  "$python" -m backdoor "$@" "data.root=$data" "hydra.run.dir=$work/runs/$name" >"$OUT/$name.txt" 2>&1 || status=$?
  for file in result.json metrics.csv; do
    [[ ! -f "$work/runs/$name/$file" ]] || cp "$work/runs/$name/$file" "$OUT/$name-$file"
  done
}
for step in ${STEPS:-tests benchmarks abl defenses}; do
  case $step in
    tests) "$python" -m pytest -m gpu >"$OUT/tests.txt" 2>&1 || status=$? ;;
    benchmarks)
      "$python" benchmarks/throughput.py --cache "$work/cache" --batches 390 >"$OUT/throughput.txt" 2>&1 || status=$?
      for name in consistency neural_cleanse simclr; do
        "$python" "benchmarks/$name.py" --device cuda >"$OUT/$name.txt" 2>&1 || status=$?
      done
      ;;
    abl)
      for attack in ${ATTACKS:-badnets blended sig trojan}; do
        study "$attack" experiment=abl_cifar10_full "attack=$attack" "$@"
      done
      ;;
    defenses)
      for attack in ${ATTACKS:-badnets}; do
        for defense in ${DEFENSES:-dbr dst dbd}; do
          study "$attack-$defense" experiment=benchmark_cifar10_full "attack=$attack" "defense=$defense" "$@"
        done
      done
      ;;
    *) echo "STEPS: expected tests, benchmarks, abl or defenses, got $step" >&2 && exit 2 ;;
  esac
done
exit "$status"
