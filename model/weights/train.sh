#!/bin/sh
# How fcos-everyday was made, in about two hours on two cores: model/weights/train.sh DATA RUNS
# DATA holds train.json, train/, val.json and val/. What was otherwise when it was made is in README.md.
set -eu
data=$1 runs=$2

train() { python model/train.py --preset everyday-cpu --data "$data" "$@"; }

# At half the size, where an epoch takes two minutes: head and pyramid find their way.
train --output "$runs/1" --size 416 --epochs 6 --plain-epochs 0 --zooms 0.5

# Strong augmentation at a constant learning rate: 4,950 pictures are soon learnt by heart.
strong="--augmentation.scale 0.6 2.2 --augmentation.mixup 0.25 --augmentation.color 0.4 --augmentation.hue 0.03"
# shellcheck disable=SC2086
train --output "$runs/2" --from "$runs/1/best.pt" --size 416 --epochs 15 --plain-epochs 0 --lr 1e-3 \
    --final-lr-factor 1 --zooms 0.5 0.75 --evaluate-every 15 --augmentation.mosaic 0.5 $strong

# Larger, and down to nothing, at last on pictures as they are served.
# shellcheck disable=SC2086
train --output "$runs/3" --from "$runs/2/last.pt" --epochs 3 --plain-epochs 1 --lr 5e-4 --warmup-iterations 50 \
    --augmentation.mosaic 0.3 $strong

# Once more, with the preset's little augmentation.
train --output "$runs/4" --from "$runs/3/best.pt" --epochs 2 --plain-epochs 1 --lr 5e-4 --warmup-iterations 50

python -m export "$runs/4/best.pt" --name fcos-everyday --output "$runs/fcos-everyday.onnx"
python -m export "$runs/4/best.pt" --name fcos-everyday --output "$runs/fcos-everyday-int8.onnx" \
    --precision int8 --calibration-images "$data/train"
