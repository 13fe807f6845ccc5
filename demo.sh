#!/usr/bin/env bash
# Shows Portway's main job by itself, on a fresh Debian 12, as root: installs packages, builds, boots a small virtual machine
# behind a tap, forwards a host port to its web server with curl, fetches the page as a client on the internet would, and
# cleans up. All of it happens in network namespaces of its own: the machine's network is not touched.
#
#   ./demo.sh          one node and its virtual machine
#   ./demo.sh fleet    three nodes, one gateway, one etcd (tests/e2e/fleet_demo.sh)
#
# PORTWAY_BUILD: a build directory whose programs are used, instead of building.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

case "${1:-}" in
"" | fleet) ;;
*) echo "usage: $0 [fleet]" >&2; exit 2 ;;
esac
if [ "$(id -u)" -ne 0 ]; then
  echo "The demonstration makes network namespaces and a tap: run with sudo: sudo $0" >&2
  exit 1
fi

node=portway-demo-node-$$      # the compute node
client=portway-demo-client-$$  # somebody on the internet
work=$(mktemp -d /tmp/portway-demo-XXXXXX)
build=${PORTWAY_BUILD:-build/release}
image=$build/guest_image
api=http://127.0.0.1:8080
processes=()  # to be ended; each is `ip netns exec` itself, which becomes the command (not on_node, which would be a shell)

step() { printf '\n== %s\n' "$*"; }
on_node() { ip netns exec "$node" "$@"; }
on_client() { ip netns exec "$client" "$@"; }

clean_up() {
  local status=$?
  trap - EXIT
  if [ $status -ne 0 ]; then
    printf '\nThe demonstration failed. What its processes printed:\n'
    tail -n 30 "$work"/*.log 2>/dev/null || true
  fi
  [ ${#processes[@]} -eq 0 ] || kill "${processes[@]}" 2>/dev/null || true
  wait
  ip netns delete "$node" 2>/dev/null || true
  ip netns delete "$client" 2>/dev/null || true
  rm -rf "$work"
  exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

# wait_for WHAT PROCESS COMMAND...: until COMMAND succeeds; fails when the process ends or two minutes pass.
wait_for() {
  local what=$1 process=$2 deadline=$((SECONDS + 120))
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ! kill -0 "$process" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
      echo "$what did not start" >&2
      return 1
    fi
    sleep 0.1
  done
}

# call METHOD PATH KEY [BODY]: a request of the API, shown as one would type it, and its answer, which also goes to standard
# output. KEY is the name of the variable with the key.
call() {
  local method=$1 path=$2 key=$3 body=${4:-}
  local arguments=(-X "$method" "$api$path")
  printf '$ curl -X %s %s -H "Authorization: Bearer $%s"' "$method" "$api$path" "$key" >&2
  if [ -n "$body" ]; then
    printf " \\\\\n    -H \"Content-Type: application/json\" -d '%s'" "$body" >&2
    arguments+=(-H "Content-Type: application/json" -d "$body")
  fi
  echo >&2
  local answer status=0
  answer=$(on_node curl -sS --fail-with-body -H "Authorization: Bearer ${!key}" "${arguments[@]}") || status=$?
  [ -z "$answer" ] || printf '%s\n' "$answer" >&2
  printf '%s' "$answer"
  return $status
}

# member NAME: the value of a string or number in the JSON on standard input.
member() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p"; }

# build_programs TARGET...
build_programs() {
  [ -z "${PORTWAY_BUILD:-}" ] || return 0
  if command -v ccache >/dev/null; then
    export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
    export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1  # another checkout's objects are as good
  fi
  cmake --preset release >/dev/null
  cmake --build --preset release -j "$(nproc)" --target "$@"
}

if [ "${1:-}" = fleet ]; then
  . tests/e2e/fleet_demo.sh
  exit 0
fi

step "1. Packages and build"
./install-packages.sh build runtime test
build_programs portwayd guest_service
tests/e2e/guest/build-image.sh "$build/tests/e2e/guest_service" "$image"

step "2. A compute node, a client on the internet, a tap (network namespaces)"
ip netns add "$node"
ip netns add "$client"
ip -n "$node" link set lo up
ip -n "$node" link add public0 type veth peer name eth0 netns "$client"
ip -n "$node" address add 198.18.0.1/24 dev public0
ip -n "$node" link set public0 up
ip -n "$client" address add 198.18.0.2/24 dev eth0
ip -n "$client" link set eth0 up
ip -n "$node" tuntap add dev tap0 mode tap
ip -n "$node" address add 198.19.0.1/24 dev tap0
ip -n "$node" link set tap0 up
echo "client 198.18.0.2 ------ 198.18.0.1 node 198.19.0.1 --tap0-- 198.19.0.2 virtual machine"

step "3. Boot a virtual machine (qemu, Debian's cloud kernel) with a web server on port 3000"
ip netns exec "$node" tests/e2e/guest/boot.sh "$image" tap0 198.19.0.2/24 198.19.0.1 the-virtual-machine \
  </dev/null >"$work/virtual-machine.log" 2>&1 &
processes+=($!)
wait_for "The virtual machine" $! grep -q "guest_service: ready" "$work/virtual-machine.log"
cat "$work/virtual-machine.log"

step "4. Start portwayd on the node"
cat >"$work/portway.toml" <<TOML
[node]
public_hostname = "compute-1.example"
public_addresses = ["198.18.0.1"]
[api]
admin_key_file = "$work/admin.key"
[guests]
networks = ["198.19.0.0/24"]
[store]
path = "$work/portway.db"
TOML
cat "$work/portway.toml"
ip netns exec "$node" "$build/portwayd" --config "$work/portway.toml" </dev/null >"$work/portwayd.log" 2>&1 &
processes+=($!)
wait_for "portwayd" $! on_node curl -fsS "$api/healthz"
cat "$work/portwayd.log"

step "5. The orchestrator registers the virtual machine and makes a key for its owner"
ADMIN_KEY=$(cat "$work/admin.key")
call PUT /instances/vm-1 ADMIN_KEY '{"guest_address": "198.19.0.2", "tap": "tap0", "owner": "alice"}' >/dev/null
# shellcheck disable=SC2034  # read by its name
API_KEY=$(call POST /api-keys ADMIN_KEY '{"role": "tenant", "owner": "alice"}' | member secret)

step "6. The owner forwards a port, as the product's page shows"
created=$(call POST /instances/vm-1/port-forwards API_KEY \
  '{"guest_port": 3000, "protocol": "tcp", "label": "dev-server"}')
forward=$(member id <<<"$created")
port=$(member host_port <<<"$created")
url=http://$(member hostname <<<"$created"):$port/

step "7. A client on the internet fetches the page"
echo "\$ curl $url"
page=$(on_client curl -sS --fail --connect-to "::198.18.0.1:" "$url")
echo "$page"
grep -q "^Hello from the-virtual-machine" <<<"$page"

step "8. No netfilter rule did that"
echo "\$ nft list ruleset"
rules=$(on_node nft list ruleset)
[ -z "$rules" ] || { echo "$rules"; exit 1; }
echo "(empty)"

step "9. What the metrics say"
echo "\$ curl $api/metrics -H \"Authorization: Bearer \$ADMIN_KEY\""
on_node curl -sS --fail -H "Authorization: Bearer $ADMIN_KEY" "$api/metrics" >"$work/metrics"
grep -E '^portway_(io_backend_info|forward_(info|received_bytes_total|sent_bytes_total|connections_total).*)\{' "$work/metrics"

step "10. Delete the forward: the port is closed"
call DELETE "/instances/vm-1/port-forwards/$forward" API_KEY >/dev/null
echo "\$ curl $url"
status=0
on_client curl -sS --connect-to "::198.18.0.1:" "$url" || status=$?
[ $status -eq 7 ] # curl's "failed to connect"

printf '\nDone: a page from inside the virtual machine came through port %s of the node, without netfilter.\n' "$port"
