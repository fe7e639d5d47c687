#!/usr/bin/env bash
# On the rented machine: keeps the parts of this upload and, once a set is complete, unpacks and uses it.
#
#   deploy/gpu-session/remote.sh keep                      keep what came with this upload
#   deploy/gpu-session/remote.sh recipes OPTION...         python -m model.recipes, on the uploaded data
#   deploy/gpu-session/remote.sh serving OPTION...         benchmarks/serving.py on CUDA
#   deploy/gpu-session/remote.sh promises OPTION...        benchmarks/promises.py on CUDA
#
# STORE: where parts, data and wheels are kept. OUT: what is to come back.
set -euo pipefail
cd "$(dirname "$0")/../.."
store=${STORE:-/tmp/fcos} out=${OUT:-runs/gpu-session} python=${PYTHON:-python3}
mkdir -p "$store/parts" "$out"
find .carry -type f -exec cp {} "$store/parts/" \; 2>/dev/null || true

unpack() { # SET
  [ -e "$store/$1/.whole" ] && return
  [ -e "$store/parts/$1.sha256" ] || { echo "no part of the set '$1' has arrived" >&2; exit 2; }
  if ! cat "$store/parts/$1".part* | sha256sum --check --status "$store/parts/$1.sha256"; then
    echo "the set '$1' is incomplete; so far there are $(cd "$store/parts" && echo "$1".part*)" >&2
    exit 2
  fi
  mkdir -p "$store/$1" "$store/site"
  cat "$store/parts/$1".part* | tar --extract --directory "$store/$1"
  for tar in "$store/$1"/data/*.tar; do
    [ -e "$tar" ] || continue
    tar --extract --directory "$store/$1/data" --file "$tar"
    rm "$tar"
  done
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$store/site" \
    "$store/$1"/wheels/*.whl
  rm "$store/parts/$1".part*
  touch "$store/$1/.whole"
}

export PYTHONPATH="$store/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
case ${1:-} in
keep)
  ls -l "$store/parts"
  ;;
recipes)
  unpack train
  # Runs stay here, so that a later call can resume them. Small files come back.
  status=0
  "$python" -m model.recipes --data "$store/train/data" --output "$store/runs" "${@:2}" || status=$?
  find "$store/runs" -maxdepth 1 \( -name '*.json' -o -name 'final.pt' \) -exec cp {} "$out/" \;
  tar --create --gzip --directory "$store/runs" --file "$out/logs.tar.gz" --exclude '*.pt' --exclude split .
  exit $status
  ;;
serving | promises)
  unpack serve
  # ONNX Runtime looks for CUDA's libraries beside itself; the machine has them beside its torch.
  nvidia=$("$python" -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null || true)
  [ -z "$nvidia" ] || [ "$nvidia" -ef "$store/site/nvidia" ] || ln -sfn "$nvidia" "$store/site/nvidia"
  options=(--provider cuda --model "$store/serve/fcos-everyday.onnx")
  [ "$1" = promises ] && options+=(--other "$store/serve/fcos-everyday-int8.onnx")
  [ "$1" = serving ] && options+=(--output "$out/serving.csv")
  "$python" "benchmarks/$1.py" "${options[@]}" "${@:2}"
  # A row per request: with over a thousand answers per second it would not come back, which is up to 16 MiB a file.
  [ "$1" = promises ] || gzip --force "$out/serving.csv"
  ;;
*)
  echo "usage: $0 keep | recipes OPTION... | serving OPTION... | promises OPTION..." >&2
  exit 2
  ;;
esac
