#!/usr/bin/env bash
# ./run.sh          the experiment below, into result/; further flags are passed through
# ./run.sh quick    a small network on scikit-learn's digits, no download, about two minutes on two CPU cores
# ./run.sh table    the paper's table: runs, goes on where it was stopped, tabulates; --help lists its flags
# ./run.sh test     the tests; -m core: those worth a run at each save, in a minute
# The first use makes .venv and installs requirements.txt into it.
set -euo pipefail
cd "$(dirname "$0")"

# edit these
prune_type=structured   # none, unstructured, structured
prune_rate=0.6          # the paper: 0.6 (its code also ran 0.3 0.5 0.7 0.8 0.9)
reg=reg_cov             # none, reg_cov, reg_ortho
odecay=0.7              # alpha
name=prune_60_reg_07    # result/$name.txt; a number is added rather than an earlier file overwritten
# the paper's other rows:
#   dense               prune_type=none        reg=none
#   pruning alone       prune_type=structured  reg=none
#   decorrelation alone prune_type=none        reg=reg_cov
# the description taken literally: ./run.sh --recipe paper
# what its code did: reg=none (its regulariser was the constant 0) and ./run.sh --recipe ksc2020

installed() { [ -e .venv/installed ] && [ ! requirements.txt -nt .venv/installed ]; }
if ! installed; then
  mkdir -p .venv
  exec 9> .venv/lock
  if command -v flock > /dev/null; then flock 9 || true; fi # of a job array that starts at once, one installs
  if ! installed; then
    echo "run.sh: installing requirements.txt into .venv" >&2
    "${PYTHON:-python3}" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt >&2
    touch .venv/installed
  fi
  exec 9>&-
fi
python=.venv/bin/python

case "${1:-}" in
  quick)
    shift
    exec $python modeling.py --dataset digits --layers 20 --epochs 50 \
      --prune_type structured --prune_rate 0.6 --reg reg_cov --odecay 0.7 "$@"
    ;;
  table)
    shift
    exec $python benchmarks/table.py "$@"
    ;;
  test)
    shift
    exec $python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
    ;;
esac

flags=(--prune_type "$prune_type")
[ "$prune_type" = none ] || flags+=(--prune_rate "$prune_rate")
flags+=(--reg "$reg")
[ "$reg" = none ] || flags+=(--odecay "$odecay")

case " $* " in *" -h "* | *" --help "*) exec $python modeling.py --help ;; esac

out=result/$name.txt
mkdir -p "$(dirname "$out")"
number=2
while [ -e "$out" ] || ! (set -o noclobber && : > "$out"); do
  [ -e "$out" ] || exit 1 # the file cannot be made, as bash has said
  out=result/$name-$number.txt
  number=$((number + 1))
done
echo "run.sh: writing $out" >&2
$python modeling.py "${flags[@]}" "$@" | tee "$out" || {
  status=$?
  [ -s "$out" ] || rm "$out" # a command that was refused leaves nothing behind
  exit $status
}
