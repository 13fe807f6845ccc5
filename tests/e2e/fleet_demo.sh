# ./demo.sh fleet, which sources this: a fleet on one machine. docs/fleet.md has the same commands to be typed.
# shellcheck shell=bash disable=SC2034,SC2154

api=http://127.0.0.1:8080  # the gateway's

start() {  # NAME COMMAND...: in the background, on the machine of the fleet
  local name=$1
  shift
  ip netns exec "$node" "$@" </dev/null >>"$work/$name.log" 2>&1 &
  processes+=($!)
}

# issue NAME SUBJECT_ALT_NAME USAGE: a certificate of the fleet's own authority.
issue() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /O=Portway -addext "subjectAltName=$2" \
    -addext "extendedKeyUsage=$3" -keyout "$work/$1.key" -out "$work/$1.csr" 2>/dev/null
  openssl x509 -req -in "$work/$1.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days 365 \
    -copy_extensions copy -out "$work/$1.crt" 2>/dev/null
}

start_node() { start "node-$1" "$build/portwayd" --config "$work/node-$1.toml"; }

node_states() { on_node curl -sS --fail -H "Authorization: Bearer $ADMIN_KEY" "$api/nodes"; }
are_up() { [ "$(node_states | grep -o '"state":"up"' | wc -l)" -eq "$1" ]; }
is_lost() { grep -q '"id":"node-1","state":"lost"' <<<"$(node_states)"; }
is_refused() { ! on_node curl -sS --fail-with-body -o "$work/answer" "$@"; }

step "1. Packages and build"
./install-packages.sh build runtime fleet
build_programs portwayd portway-gateway

step "2. A machine for all of it (a network namespace), and a guest behind a veth with a web server on port 3000"
ip netns add "$node"
ip netns add "$client" # the guest
ip -n "$node" link set lo up
ip -n "$node" link add tap0 type veth peer name eth0 netns "$client"
ip -n "$node" address add 198.19.0.1/24 dev tap0
ip -n "$node" link set tap0 up
ip -n "$client" address add 198.19.0.2/24 dev eth0
ip -n "$client" link set eth0 up
mkdir "$work/page"
echo "Hello from the guest" >"$work/page/index.html"
ip netns exec "$client" python3 -m http.server 3000 --directory "$work/page" </dev/null >"$work/guest.log" 2>&1 &
processes+=($!)
wait_for "The guest" $! on_node curl -fsS http://198.19.0.2:3000/

step "3. An authority, a certificate for the nodes, and one for the gateway"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj "/CN=Portway fleet" \
  -keyout "$work/ca.key" -out "$work/ca.crt" 2>/dev/null
issue nodes IP:127.0.0.1 serverAuth
issue gateway DNS:gateway.example clientAuth
openssl x509 -in "$work/gateway.crt" -noout -issuer -ext subjectAltName

step "4. One etcd, three nodes, one gateway"
start etcd etcd --data-dir "$work/etcd"
for n in 1 2 3; do
  cat >"$work/node-$n.toml" <<TOML
[node]
public_hostname = "node-$n.example"
[api]
admin_key_file = "$work/node-$n.key"
[[api.listen]]
address = "127.0.0.1:844$n"
tls_certificate = "$work/nodes.crt"
tls_private_key = "$work/nodes.key"
client_ca = "$work/ca.crt"
[guests]
networks = ["198.19.0.0/24"]
[ports]
range = "2${n}000-2${n}999"
[proxy]
source_mode = "plain" # three nodes share one network namespace
[store]
path = "$work/node-$n.db"
[fleet]
etcd = ["http://127.0.0.1:2379"]
node_id = "node-$n"
address = "https://127.0.0.1:844$n"
gateways = ["gateway.example"]
lease_ttl_s = 5
TOML
  start_node $n
  nodes[n]=$!
done
cat "$work/node-1.toml"
cat >"$work/gateway.toml" <<TOML
[node]
public_hostname = "gateway.example"
[api]
listen = "127.0.0.1:8080"
admin_key_file = "$work/admin.key"
[fleet]
etcd = ["http://127.0.0.1:2379"]
[gateway]
node_tls_ca = "$work/ca.crt"
node_tls_certificate = "$work/gateway.crt"
node_tls_private_key = "$work/gateway.key"
TOML
printf '\n%s\n' "gateway.toml:"
cat "$work/gateway.toml"
start gateway "$build/portway-gateway" --config "$work/gateway.toml"
gateway=$!
wait_for "The gateway" $gateway on_node curl -fsS "$api/readyz"
ADMIN_KEY=$(cat "$work/admin.key")
wait_for "The fleet" $gateway are_up 3

step "5. The nodes, as the gateway knows them"
call GET /nodes ADMIN_KEY >/dev/null

step "6. An instance on node-1, and a key for its owner that is valid everywhere"
call PUT "/instances/vm-1?node=node-1" ADMIN_KEY '{"guest_address": "198.19.0.2", "tap": "tap0", "owner": "alice"}' >/dev/null
API_KEY=$(call POST /api-keys ADMIN_KEY '{"role": "tenant", "owner": "alice"}' | member secret)

step "7. The owner forwards a port at the gateway, as the product's page shows, and a client fetches the page"
created=$(call POST /instances/vm-1/port-forwards API_KEY \
  '{"guest_port": 3000, "protocol": "tcp", "label": "dev-server"}')
url=http://$(member hostname <<<"$created"):$(member host_port <<<"$created")/
fetch() { on_node curl -sS --fail --connect-to "::127.0.0.1:" "$url"; }
echo "\$ curl $url"
fetch
call GET /port-forwards API_KEY >/dev/null

step "8. node-1 is killed: within its lease the gateway says so"
kill -KILL "${nodes[1]}"
wait_for "The end of node-1's lease" $gateway is_lost
echo "\$ curl $api/instances/vm-1 -H \"Authorization: Bearer \$API_KEY\""
is_refused -H "Authorization: Bearer $API_KEY" "$api/instances/vm-1"
cat "$work/answer"
echo
grep -q node_unreachable "$work/answer"
call GET /instances API_KEY >/dev/null

step "9. node-1 starts again: it has its instance, and the client its page"
start_node 1
wait_for "node-1" $! are_up 3
echo "\$ curl $url"
fetch

step "10. node-2 is drained: it takes nothing new, and the instance moves to node-3"
call POST /nodes/node-2/drain ADMIN_KEY >/dev/null
call PUT "/instances/vm-1?node=node-2" ADMIN_KEY '{"guest_address": "198.19.0.2", "tap": "tap0", "owner": "alice"}' \
  >/dev/null || true
call PUT "/instances/vm-1?node=node-3" ADMIN_KEY '{"guest_address": "198.19.0.2", "tap": "tap0", "owner": "alice"}' >/dev/null
call GET /instances ADMIN_KEY | grep -q '"node":"node-3"'
call DELETE /nodes/node-2/drain ADMIN_KEY >/dev/null

printf '\nDone: one address for three nodes; nothing but etcd knows where an instance is, and each node decides what it serves.\n'
