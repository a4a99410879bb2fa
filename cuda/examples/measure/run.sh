#!/usr/bin/env bash
# Are the kernels right on this machine's card, how fast are they, and how fast is PyTorch, if python3 has it?
# Needs a driver for CUDA 13 (580 or later). Writes limpid.txt and limpid.json, pytorch.txt and pytorch.json beside itself.
# Arguments are the program's: ./measure --help.
set -euo pipefail
cd "$(dirname "$0")"

export LIMPID_CUDA_CACHE=$PWD/cubins
status=0
./measure --json limpid.json "$@" | tee limpid.txt || status=$?
# 1: something is wrong, which the table says; anything above: there is no table.
[ "$status" -le 1 ] || exit "$status"

if python3 -c 'import torch' 2>/dev/null; then
    python3 peer.py limpid.json pytorch.json | tee pytorch.txt
else
    echo "python3 has no PyTorch here to compare with"
fi
exit "$status"
