#!/usr/bin/env bash
# Short comparisons: ResNet-20, CIFAR-10, 10 epochs, one row a line below, JOBS runs at a time with one thread each.
#   DATA_DIR=data JOBS=2 benchmarks/short_runs.sh OUT [SET]    finished rows are left alone, others go on
# SET is "rates", "moving", "tickets", "init", "teachers", "labels", "strengths" or "evidence"; SEEDS (default "0") are those of
# all but the first two. A row that needs another run, such as a control, fails until that one has ended: type the line again.
# "rates", the default, compares methods at an equal rate; "moving" compares ways to move masks at equal MACs, two seeds each;
# "tickets" prunes weights in rounds of 3 epochs to 6.4 %, in four ways and with two controls;
# "init" cuts weights before training, to 10 % and 2 %, by five criteria, with two controls, 3 epochs;
# "teachers" cuts RUN, a dense ResNet-20, to 50 % and 30 % of the MACs, and, an epoch later, trains what is left by itself and
# with RUN as its teacher, by each loss, for 3 epochs;
# "labels" keeps the labels of a tenth of the images, with and without a noisy student, 20 epochs of these images;
# "strengths" lets gates learn what is cut, L0 and variational dropout at two strengths each, 3 epochs;
# "evidence" asks what moving masks and decorrelation are worth at 30 % of the MACs, in 20 epochs, beside controls: masks fixed at
# the start, random ones, one cut halfway, what is left trained from fresh weights, and the dense network as teacher.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?where the run folders go}
common="--layers 20 --epochs 10 --threads 1 --data_dir ${DATA_DIR:-data}"
case ${2:-rates} in
rates)
  rows=(
    "ours_60_reg       --prune_type structured --prune_rate 0.6 --reg reg_cov --odecay 0.7"
    "ksc2020_60        --recipe ksc2020"
    "ours_60           --prune_type structured --prune_rate 0.6"
    "paper_60          --recipe paper"
    "dense             --prune_type none"
    "fixed_60          --prune_type structured --prune_rate 0.6 --prune_phase init"
    "random_60         --prune_type structured --prune_rate 0.6 --prune_imp random"
    "ours_80           --prune_type structured --prune_rate 0.8"
    "ours_90           --prune_type structured --prune_rate 0.9"
  ) ;;
moving)
  common+=" --prune_type structured --target_macs 0.38"
  rows=()
  for seed in 0 1; do
    rows+=(
      "zero_$seed        --seed $seed"
      "right_$seed       --seed $seed --prune_gate output(joint='right')"
      "hysteresis_$seed  --seed $seed --prune_scope global(hysteresis=0.2)"
      "rarer_$seed       --seed $seed --prune_phase dynamic(rarer=1.0)"
      "fixed_$seed       --seed $seed --prune_phase init"
      "random_$seed      --seed $seed --prune_imp random"
    )
  done ;;
tickets)
  common+=" --epochs 3 --lr 0.1 --lr_schedule cosine --weight_decay 5e-4 --prune_type unstructured"
  rows=()
  for seed in ${SEEDS:-0}; do
    rows+=(
      "weights_$seed        --seed $seed --procedure rounds(n=3,fraction=0.6,to='350it')"
      "learning_rate_$seed  --seed $seed --procedure rounds(n=3,fraction=0.6,rewind='learning_rate')"
      "theta_0_$seed        --seed $seed --procedure rounds(n=3,fraction=0.6)"
      "fine_tuning_$seed    --seed $seed --procedure rounds(n=3,fraction=0.6,rewind='none') --finetune_lr 0.01"
      "random_$seed         --seed $seed --procedure control(of='$out/weights_$seed')"
      "reinitialise_$seed   --seed $seed --procedure control(of='$out/weights_$seed',kind='reinitialise')"
    )
  done ;;
init)
  common+=" --epochs 3 --lr 0.1 --lr_schedule cosine --weight_decay 5e-4 --prune_type unstructured"
  rows=()
  for seed in ${SEEDS:-0}; do
    for rate in 0.9 0.98; do
      cut="--seed $seed --prune_rate $rate --prune_scope global(normalise='none',floor=0)"
      rows+=(
        "SNIP_${rate}_$seed       $cut --prune_phase init --prune_imp SNIP"
        "GraSP_${rate}_$seed      $cut --prune_phase init --prune_imp GraSP"
        "SynFlow_${rate}_$seed    $cut --prune_phase init(rounds=100) --prune_schedule exponential --prune_imp SynFlow"
        "magnitude_${rate}_$seed  $cut --prune_phase init"
        "random_${rate}_$seed     $cut --prune_phase init --prune_imp random"
      )
    done
    for name in SNIP GraSP SynFlow magnitude; do
      for rate in 0.9 0.98; do
        of="of='$out/${name}_${rate}_$seed'"
        rows+=(
          "${name}_${rate}_shuffled_$seed       --seed $seed --procedure control($of,kind='shuffle')"
          "${name}_${rate}_reinitialised_$seed  --seed $seed --procedure control($of,kind='reinitialise')"
        )
      done
    done
  done ;;
teachers)
  common+=" --epochs 3 --lr 0.05 --lr_schedule cosine --weight_decay 5e-4"
  rows=()
  for macs in 0.5 0.3; do
    cut="$out/cut_${macs}_0"
    rows+=("cut_${macs}_0  --init ${RUN:?a dense run of ResNet-20} --prune_type structured --target_macs $macs --prune_phase init --epochs 1 --compact")
    for seed in ${SEEDS:-0}; do
      rows+=("alone_${macs}_$seed  --seed $seed --init $cut/model.pt")
      for loss in KD DKD FitNet AT RKD SP KD+AT; do
        rows+=("${loss}_${macs}_$seed  --seed $seed --init $cut/model.pt --teacher $RUN --distill $loss")
      done
    done
  done ;;
labels)
  common+=" --lr 0.05 --lr_schedule cosine --weight_decay 5e-4 --labelled 0.1 --epochs 20"
  rows=()
  for seed in ${SEEDS:-0}; do
    rows+=(
      "supervised_$seed     --seed $seed"
      "noisy_student_$seed  --seed $seed --procedure noisy_student(generations=1,ratio=2)"
    )
  done ;;
strengths)
  common+=" --epochs 3 --lr 0.1 --lr_schedule cosine --weight_decay 5e-4"
  rows=()
  for seed in ${SEEDS:-0}; do
    for weight in 3.0 5.0; do
      rows+=("L0_${weight}_$seed  --seed $seed --prune_type structured --prune_gate hard_concrete(weight=$weight) --compact")
    done
    for weight in 0.3 1.0; do
      rows+=("variational_${weight}_$seed  --seed $seed --prune_type unstructured --prune_gate variational(weight=$weight,begin=0,full=2)")
    done
  done ;;
evidence)
  common="--epochs 20 --threads 1 --data_dir ${DATA_DIR:-data}"
  rows=()
  for seed in ${SEEDS:-0}; do
    best="--layers 20 --recipe best --seed $seed"
    fresh="--lr_schedule cosine --weight_decay 5e-4 --seed $seed --procedure scratch(of='$out/moving_$seed/model.pt'"
    cut="$best --target_macs 0.3 --compact"
    rows+=(
      "dense_$seed         $best --prune_type none"
      "moving_$seed        $cut"
      "moving_cov_$seed    $cut --reg reg_cov --odecay 0.7"
      "cov_$seed           $best --prune_type none --reg reg_cov --odecay 0.7"
      "fixed_$seed         $cut --prune_phase init"
      "random_$seed        $cut --prune_imp random"
      "one_cut_$seed       $cut --prune_phase after"
      "scratch_E_$seed     $fresh,budget='E')"
      "scratch_B_$seed     $fresh,budget='B')"
      "taught_$seed        $cut --teacher $out/dense_$seed"
      "ksc2020_$seed       --layers 20 --recipe ksc2020 --seed $seed"
      "paper_$seed         --layers 20 --recipe paper --seed $seed"
    )
  done ;;
*)
  echo "short_runs.sh: unknown set '$2': rates, moving, tickets, init, teachers, labels, strengths or evidence" >&2
  exit 2
  ;;
esac
for row in "${rows[@]}"; do
  read -r name flags <<<"$row"
  run=$out/$name
  [ -e "$run/summary.json" ] && continue
  what="$common $flags --out_dir $run"
  [ -e "$run/config.json" ] && what="--resume $run"
  printf '%s\n' "mkdir -p $run && ${PYTHON:-python} modeling.py $(printf '%q ' $what)> $run/result.txt"
done | xargs -P "${JOBS:-1}" -d '\n' -I{} bash -c '{}'
