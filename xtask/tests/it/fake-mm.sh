#!/bin/sh
# Stands in for `mm` in the tests: writes what the real program would, with made-up numbers.
#   FAKE_MM_LOG    a line is appended to this file for every call
#   FAKE_MM_FAIL   calls whose configuration contains this text fail
#   FAKE_MM_SLEEP  seconds that a call takes
#   FAKE_MM_VAL    a file with lines `METHOD[:MODALITY] TRAIN LR SEED ACCURACY LOSS` for the validation part, where TRAIN
#                  is data.split.train or `-`; what it does not name has accuracy 0.5 and loss 1
set -eu
[ -z "${FAKE_MM_LOG:-}" ] || echo "$RAYON_NUM_THREADS $*" >> "$FAKE_MM_LOG"
[ -z "${FAKE_MM_SLEEP:-}" ] || exec sleep "$FAKE_MM_SLEEP"

task=$1
shift
config=
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=$2; shift ;;
        --*) ;;
        *) config=$1 ;;
    esac
    shift
done

# The value of a key in a TOML table, without quotes: value TABLE KEY.
value() {
    awk -v table="$1" -v key="$2" '
        /^\[/ { here = $0; gsub(/[][]/, "", here) }
        here == table && $1 == key { sub(/^[^=]*= */, ""); gsub(/"/, ""); print; exit }' "$config"
}

seed=0 method=ensemble modality= val=
if [ "$task" = train ]; then
    seed=$(value "" seed) method=$(value method kind) modality=$(value method modality)
    if [ -n "${FAKE_MM_VAL:-}" ]; then
        train=$(value data.split train)
        val=$(awk -v row="$method${modality:+:$modality}" -v train="${train:--}" -v lr="$(value optim lr)" -v seed="$seed" '
            $1 == row && $2 == train && $3 == lr && $4 == seed { found = $5 ", \"loss\": " $6 }
            END { print found ? found : "0.5, \"loss\": 1" }' "$FAKE_MM_VAL")
    fi
    if [ -n "${FAKE_MM_FAIL:-}" ] && grep -q "$FAKE_MM_FAIL" "$config"; then
        echo "first line" >&2
        echo "error: train.epochs = 0: must be at least 1" >&2
        exit 2
    fi
else # the last member tells the seed
    seed=$(sed -n 's/.*"seed": \([0-9]*\).*/\1/p' "$config/result.json")
fi
case $method$modality in
    unimodalfast) base=600 fast=620 slow=null predicted='[0, 0, 1, 1]' ;;
    unimodalslow) base=700 fast=null slow=720 predicted='[0, 1, 0, 1]' ;;
    ensemble) base=780 fast=620 slow=720 predicted='[0, 1, 1, 1]' ;;
    joint) base=800 fast=610 slow=550 predicted='[0, 0, 1, 1]' ;;
    mlb) base=$((830 + seed)) fast=600 slow=700 predicted='[0, 0, 0, 1]' ;;
    *) base=$((790 - seed * seed)) fast=590 slow=560 predicted='[1, 0, 1, 1]' ;;
esac
rate() { [ "$1" = null ] && echo null || awk -v n="$1" 'BEGIN { print n / 1000 }'; }
accuracy=$(rate $((base + 10 * seed)))
mkdir -p "$out"
cat > "$out/predictions.json" <<END
{"ids": [0, 1, 2, 3], "labels": [0, 0, 0, 0], "predicted": $predicted, "test": {"ids": []}}
END
cat > "$out/result.json" <<END
{"format": 1, "name": "fake", "method": "$method", "fusion": "late-linear", "encoder": "mlp", "seed": $seed,
 "protocol": "validation-select", "selected_on_test": false,
 "dataset": {"name": "synthetic", "hash": "00ff00ff00ff00ff$seed", "classes": 6, "modalities": ["fast", "slow"],
             "train": 2000, "val": 500, "test": 4},
 "selected_epoch": 1, "epochs": 2, "steps": 10,
 "val": {"accuracy": ${val:-$accuracy}},
 "test": {"accuracy": $accuracy, "macro_f1": $accuracy, "ece": 0.05, "mcc": null, "confusion": [[1, 0], [0, 1]]},
 "unimodal": {"fast": {"head": null, "probe": $(rate $fast)}, "slow": {"head": null, "probe": $(rate $slow)}},
 "modality_gap": {"fast|slow": 0.8}, "shapley": null, "warnings": [],
 "seconds": {"train": 1.0, "total": 1.5}, "device": "cpu", "candle": "0.11.1", "commit": "${MM_COMMIT:-}",
 "threads": 1}
END
