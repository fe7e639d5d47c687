#!/bin/sh
# How fcos-lite0-everyday was made, in about three and a half hours on two cores: model/weights/train.sh DATA RUNS
# DATA holds train.json, train/, val.json and val/. What was otherwise when it was made is in README.md.
set -eu
data=$1 runs=$2

train() { python model/train.py --preset everyday-cpu --data "$data" "$@"; }

# Little augmentation, whole cosine: it detects, but learns the training pictures by heart.
train --output "$runs/1"

# Strong augmentation on smaller canvases, at a constant learning rate; then down to nothing, at last on plain pictures.
strong="--augmentation.scale 0.6 2.2 --augmentation.mixup 0.25 --augmentation.color 0.4 --augmentation.hue 0.03"
# shellcheck disable=SC2086
train --output "$runs/2" --from "$runs/1/best.pt" --epochs 14 --plain-epochs 0 --lr 8e-4 --final-lr-factor 1 \
    --zooms 0.5 0.75 --augmentation.mosaic 0.5 $strong
# shellcheck disable=SC2086
train --output "$runs/3" --from "$runs/2/last.pt" --epochs 5 --plain-epochs 3 --lr 4e-4 --warmup-iterations 50 \
    --augmentation.mosaic 0.3 $strong

# The mean of both is better than either.
python -m model.average "$runs/1/best.pt" "$runs/3/best.pt" --data "$data" --output "$runs/final.pt"

python -m export "$runs/final.pt" --name fcos-lite0-everyday --output "$runs/fcos-lite0-everyday.onnx"
python -m export "$runs/final.pt" --name fcos-lite0-everyday --output "$runs/fcos-lite0-everyday-int8.onnx" \
    --precision int8 --calibration-images "$data/train"
