#!/usr/bin/env bash
# A store, three workers and a master on this machine: configs/issgd/cluster.sh [FLAGFILE] [OUT] [FLAG...]
# PYTHON, PORT and WORKERS change what runs, where, and how many; flags are those of workers and master.
set -euo pipefail
cd "$(dirname "$0")/../.."

flagfile=${1:-configs/issgd/digits.cfg}
out=${2:-runs/issgd/cluster}
more=("${@:3}")
python=${PYTHON:-.venv/bin/python}
port=${PORT:-6379}
store=redis://127.0.0.1:$port/0
mkdir -p "$out.logs"

started=()
trap 'kill "${started[@]}" 2>/dev/null; wait' EXIT

redis-server --port "$port" --bind 127.0.0.1 --save "" --maxmemory-policy noeviction \
  >"$out.logs/redis" &
started+=($!)
server=$!

# Of the server that answers: another one may have the port, and somebody's data.
process_of_server() {
  redis-cli -p "$port" info server 2>/dev/null | tr -d '\r' | sed -n 's/^process_id://p'
}
until [[ $(process_of_server) == "$server" ]]; do
  kill -0 "$server" 2>/dev/null || {
    echo "port $port is taken, or redis-server did not start: $out.logs/redis; give PORT=…" >&2
    exit 1
  }
  sleep 0.1
done

for number in $(seq "${WORKERS:-3}"); do
  "$python" -m trainers.issgd --flagfile="$flagfile" --store="$store" --role=worker \
    --worker_name="worker-$number" "${more[@]}" >"$out.logs/worker-$number" 2>&1 &
  started+=($!)
done

"$python" -m trainers.issgd --flagfile="$flagfile" --store="$store" --role=master --out="$out" \
  "${more[@]}"
