#!/bin/sh
# What `make demo` runs after the set-up: the whole way through on the embedded pictures, without a network.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

number=1
while [ -e "runs/demo-s0-$number" ]; do number=$((number + 1)); done
run="runs/demo-s0-$number"

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

show cifarlab train demo --data demo --out "$run"
show cifarlab evaluate "$run"
show cifarlab data demo --figure "$run/figures/pictures.png" --per-class 3

cat <<EOF

Done: a small network was trained on 4,500 embedded pictures of ten shapes, chosen by 500 others,
and judged once on 2,000 test pictures that it had never seen. It is all in $run:
  figures/learning-curves.png   loss and accuracy, epoch by epoch: look at this first
  figures/pictures.png          what the pictures look like
  evaluation.json               the judgement: loss, accuracy, every class, the confusion matrix
  metrics.csv                   the numbers behind the curves
  weights-best.safetensors      the network, with its preparation and class names
  recipe.json                   every setting that decided the result

Next, the real CIFAR-10 (it is fetched once, 170 MB):
  . .venv/bin/activate
  cifarlab train vgg3-bn --plan     how long the published recipe will take on this machine
  cifarlab train vgg3-bn            train it; Ctrl-C stops it safely, \`cifarlab resume\` goes on
EOF
