#!/bin/sh
# How fcos-everyday was made, in about seven and a half hours on two cores, in float32: train.sh DATA RUNS
# DATA holds train.json, train/, val.json and val/. README.md says what was done differently at the time.
set -eu
data=${1:-} runs=${2:-}
if [ ! -f "$data/train.json" ] || [ -z "$runs" ]; then
    echo "usage: $0 DATA RUNS, where DATA holds train.json, train/, val.json and val/" >&2
    exit 2
fi

train() { python model/train.py --preset everyday-cpu --data "$data" "$@"; }

# Head and pyramid first, at half the size, where an epoch takes two minutes.
train --output "$runs/1" --size 416 --epochs 6 --plain-epochs 0 --zooms 0.5

# Strong augmentation at a constant learning rate: a network soon overfits 4,950 pictures.
strong="--augmentation.scale 0.6 2.2 --augmentation.mixup 0.25 --augmentation.color 0.4 --augmentation.hue 0.03"
# shellcheck disable=SC2086
train --output "$runs/2" --from "$runs/1/best.pt" --size 416 --epochs 15 --plain-epochs 0 --lr 1e-3 \
    --final-lr-factor 1 --zooms 0.5 0.75 --evaluate-every 15 --augmentation.mosaic 0.5 $strong

# Larger, with the learning rate down to nothing, and at the end on pictures as they are served.
# shellcheck disable=SC2086
train --output "$runs/3" --from "$runs/2/last.pt" --size 480 --epochs 3 --plain-epochs 1 --lr 5e-4 \
    --warmup-iterations 50 --augmentation.mosaic 0.3 $strong

# Again, with the preset's mild augmentation.
train --output "$runs/4" --from "$runs/3/best.pt" --size 480 --epochs 2 --plain-epochs 1 --lr 5e-4 \
    --warmup-iterations 50

# The learning rate up and down again: no better on val, but different weights; the mean of the three is the next start.
# shellcheck disable=SC2086
train --output "$runs/5" --from "$runs/4/best.pt" --size 480 --epochs 11 --plain-epochs 0 --lr 1e-3 --seed 5 \
    --final-lr-factor 1 --zooms 0.5 0.75 --evaluate-every 11 --augmentation.mosaic 0.5 $strong
# shellcheck disable=SC2086
train --output "$runs/6" --from "$runs/5/last.pt" --size 480 --epochs 4 --plain-epochs 1 --lr 5e-4 --seed 6 \
    --warmup-iterations 50 --augmentation.mosaic 0.3 $strong
python -m model.average "$runs/3/best.pt" "$runs/4/best.pt" "$runs/6/best.pt" --data "$data" --output "$runs/mean.pt"

# Small objects need size: half of the batches, and at the end all, as large as they are served.
train --output "$runs/7" --from "$runs/mean.pt" --epochs 12 --plain-epochs 2 --lr 1e-3 --warmup-iterations 100 \
    --zooms 0.75 1.0 --evaluate-every 12 --augmentation.scale 0.6 2.0 --augmentation.mosaic 0.3 \
    --augmentation.mixup 0.15 --augmentation.color 0.3 --augmentation.hue 0.02

# The same with stronger augmentation; again a mean, of two: a little better than either on training pictures.
# shellcheck disable=SC2086
train --output "$runs/8" --from "$runs/7/best.pt" --epochs 10 --plain-epochs 1 --lr 1e-3 --warmup-iterations 100 \
    --zooms 0.75 1.0 --evaluate-every 10 --seed 8 --augmentation.mosaic 0.5 $strong
python -m model.average "$runs/7/best.pt" "$runs/8/best.pt" --data "$data" \
    --output "$runs/fcos-everyday.pt" --small

python -m export "$runs/fcos-everyday.pt" --name fcos-everyday --output "$runs/fcos-everyday.onnx"
python -m export "$runs/fcos-everyday.pt" --name fcos-everyday --output "$runs/fcos-everyday-int8.onnx" \
    --precision int8 --calibration-images "$data/train"
