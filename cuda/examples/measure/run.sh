#!/usr/bin/env bash
# Are the kernels right on this machine's card, how fast are they, and how fast is PyTorch, if python3 has it?
# Needs a driver for CUDA 13 (580 or later). Writes report.txt and report.json, one table of everything that was timed, beside
# PyTorch's times and what was aimed at; and tests.txt, what the tests said. Arguments are the program's: ./measure --help.
#
# With --emulate all of it runs on this processor, which needs g++, to see that it runs. TESTS names the tests to run,
# instead of all in tests/.
set -euo pipefail
cd "$(dirname "$0")"

export LIMPID_CUDA_CACHE=$PWD/cubins
case " $* " in
*" --emulate "*) ;;
*) export LIMPID_TEST_DEVICE=cuda ;;
esac

passed=() failed=()
: >tests.txt
for test in ${TESTS-$(ls tests)}; do
    # In turns: what a test counts or leaves free is the whole device's.
    echo "test $test" | tee -a tests.txt >&2
    if "tests/$test" --test-threads 1 >>tests.txt 2>&1; then passed+=("$test"); else failed+=("$test"); fi
done

peer=()
if python3 -c 'import torch' 2>/dev/null; then
    peer=(--peer peer.py)
fi
status=0
{
    echo "tests passed: ${passed[*]-none}"
    echo "tests failed: ${failed[*]-none}"
    ./measure --json report.json "${peer[@]}" "$@"
} | tee report.txt || status=$?
# 1: something is wrong, which the table or tests.txt says; anything above: there is no table.
[ "$status" -gt 0 ] || [ "${#failed[@]}" -eq 0 ] || status=1
exit "$status"
