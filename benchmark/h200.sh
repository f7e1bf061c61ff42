#!/usr/bin/env bash
# Checks and timings on a GPU machine in one go: everything that benchmark/results/h200 is made from.
#
#     benchmark/h200.sh OUT [STAGE ...]      stages: checks roofline offline-0.6b offline-14b profile depths
#                                             idle ranks (two GPUs)
#
# Logs and JSON go to the folder OUT; the last lines are a short table. PYTHON chooses the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
stages=${*:-checks roofline offline-0.6b offline-14b profile depths}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
mkdir -p "$out"

# stage NAME SECONDS COMMAND ...: run it within its time, keep its log, show the end of it.
stage() {
    local name=$1 seconds=$2 started=$SECONDS
    shift 2
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1
    local code=$?
    tail -n "${LINES_SHOWN:-12}" "$out/$name.log"
    echo "== $name: exit code $code after $((SECONDS - started)) s"
    return $code
}

for wanted in $stages; do
    case $wanted in
        checks)
            # No figure counts without these.
            stage checks 300 $python -m pytest -q tests/model_proc/test_attention_kernels.py \
                tests/model_proc/test_linear_kernels.py tests/model_proc/test_small_models.py \
                tests/model_proc/test_truncation.py tests/model_proc/test_precision.py \
                -k "${CHECKS:-bfloat16 or cuda or sampling or tokens_come or embedding or threshold or host or prefix}" \
                || exit 1
            ;;
        roofline) stage roofline 60 $python -m benchmark.roofline --json "$out/roofline.json" ;;
        offline-*)
            stage "$wanted" 300 $python -m benchmark.offline --model "${wanted#offline-}" \
                --repeats "${REPEATS:-2}" --json "$out/offline.json"
            ;;
        profile)
            LINES_SHOWN=60 stage profile-0.6b 100 $python -m benchmark.step_profile --model 0.6b --batch 1 64 256 \
                --prefill "${PREFILL:-16384}" --json "$out/profile-0.6b.json"
            LINES_SHOWN=60 stage profile-14b 100 $python -m benchmark.step_profile --model 14b --batch 1 64 \
                --prefill "${PREFILL:-16384}" --json "$out/profile-14b.json"
            ;;
        idle)
            for depth in 2 1; do
                stage "idle-$depth" 90 $python -m benchmark.idle --model 0.6b --json "$out/idle.json" \
                    -- --pipeline-depth=$depth
            done
            stage idle-14b 90 $python -m benchmark.idle --model 14b --json "$out/idle.json"
            ;;
        ranks)
            stage ranks 150 $python -m benchmark.offline --model 14b --work single decode64 prefill --repeats 1 \
                --json "$out/offline.json" -- --tensor-parallel-size=2
            ;;
        depths)
            for depth in 1 3; do
                stage "depth-$depth" 100 $python -m benchmark.offline --model 0.6b --work single decode64 \
                    --json "$out/offline.json" -- --pipeline-depth=$depth
            done
            ;;
        *) echo "unknown stage: $wanted" && exit 2 ;;
    esac
done

[ -f "$out/offline.json" ] && $python - "$out/offline.json" <<'PYTHON'
import json
import sys

for row in json.load(open(sys.argv[1])):
    share = f"{row['limit_ratio']:.0%}" if row["limit_ratio"] else "-"
    print(f"{row['size']:>5} {row['work']:>9} depth {row['depth']}: {row['seconds']:8.3f} s"
          f" {row['out_tok_s']:9.0f} out/s {row['in_tok_s']:9.0f} in/s {share:>5} of the limit")
PYTHON
