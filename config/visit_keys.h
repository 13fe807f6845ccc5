// Every configuration key, said once: its name, whether SIGHUP changes it, its meaning for operators, its
// member and its rule, in the order of the reference. Loading, the reference and the live difference are
// visits (config/config_keys.cpp).
#pragma once

#include <cstdint>

#include "config/config.h"
#include "config/key_rules.h"

namespace portway {

struct KeyText {
  // Dotted; '*' stands for a profile's name.
  std::string_view name;
  // Can change while the daemon runs.
  bool live;
  // For operators, a paragraph.
  std::string_view help;
};

/// Calls visit(KeyText, member, rule) for each key, with the members of `profile` for those of a profile.
/// C and P are Config and Profile, or both const.
template <class C, class P, class Visit>
void visit_keys(C& config, P& profile, Visit visit) {
  constexpr bool kLive = true;
  constexpr bool kFixed = false;
  visit(
      {"node.public_hostname", kLive,
       "The name clients connect to: the \"hostname\" of the API's answers. Empty: this machine's own name."},
      config.node.public_hostname, kHostname);
  visit({"node.public_addresses", kFixed,
         "The addresses on which host ports are bound, IPv4 or IPv6. Naming the public ones is better than "
         "0.0.0.0: the ports then stay closed on the node's other addresses."},
        config.node.public_addresses, kPublicAddresses);
  visit({"api.listen", kFixed,
         "Where the REST API listens: ip:port, where port 0 is any free one, or unix:/path. Beyond loopback "
         "set api.tls_certificate: keys would travel in clear text. A Unix socket has mode 0660 and the "
         "daemon's group, or its directory's group if the directory is setgid. Several listeners are a list "
         "of such strings, or of tables: each [[api.listen]] has an address, and may have a tls_certificate "
         "with its tls_private_key, a client_ca, allow_guests and admin_uids of its own. What a listener "
         "leaves out is as the keys below say, but a Unix socket has no TLS; tls_certificate = \"\" is plain "
         "HTTP."},
        config.api.listen, ApiListeners{});
  visit({"api.admin_key_file", kFixed,
         "The file with the first admin key. If it is missing, it is created at start with a random key, "
         "mode 0600."},
        config.api.admin_key_file, kPath);
  visit({"api.admin_uids", kFixed,
         "Users (numeric ids) who are admin without a key when they call over the Unix socket, e.g. [0] for "
         "root. Empty: everybody needs a key."},
        config.api.admin_uids, Uids{.max = 64});
  visit({"api.tls_certificate", kFixed,
         "The PEM file with the API's certificate, followed by the chain of its authorities; api.listen then "
         "speaks HTTPS only (TLS 1.2 or 1.3). Empty: plain HTTP. metrics.listen stays plain HTTP."},
        config.api.tls_certificate, kOptionalPath);
  visit({"api.tls_private_key", kFixed,
         "The PEM file with the certificate's private key, without a passphrase. Set together with "
         "api.tls_certificate."},
        config.api.tls_private_key, kOptionalPath);
  visit({"api.client_ca", kFixed,
         "The PEM file with the authorities of clients' certificates: only clients with such a certificate "
         "can connect, and they need a key as well. Empty: clients need no certificate."},
        config.api.client_ca, kOptionalPath);
  visit({"api.allow_guests", kFixed,
         "Whether guests may connect to api.listen and metrics.listen: clients from guests.networks, with a "
         "link-local address, or over the tap of an instance. Unless this is true, their connections are "
         "closed at once."},
        config.api.allow_guests, Flag{});
  visit({"api.rate_limit_per_second", kLive,
         "Units a second that the keys of one owner may use together. Reading one thing costs 1, a list or a "
         "change 5, and what takes most work 20 (docs/api.md). Each admin key has ten times as much, of its "
         "own. More is answered with 429. 0: no limit."},
        config.api.rate_limit_per_second, Number{0, 1'000'000});
  visit({"api.rate_limit_burst", kLive,
         "Units that an owner may use at once after a pause; ten times as many for an admin key."},
        config.api.rate_limit_burst, Number{1, 1'000'000});
  visit({"api.wrong_keys_per_minute", kLive,
         "Requests a minute with keys that are not valid that one address (of IPv6: one /64 network), or one "
         "user of a Unix socket, may send until further ones are answered with 429 instead of 401. Good keys "
         "are not affected. 0: no limit."},
        config.api.wrong_keys_per_minute, Number{0, 1'000'000});
  visit({"api.body_max_bytes", kFixed,
         "The largest body of a request, in bytes; a larger one is answered with 413."},
        config.api.body_max_bytes, Number{1024, 16'777'216});
  visit({"metrics.listen", kFixed,
         "A separate listener for /metrics, ip:port or unix:/path, that needs no key. Empty: /metrics is on "
         "the API's listener and needs a key."},
        config.metrics.listen, kOptionalListen);
  visit({"ports.range", kFixed,
         "The host ports given to forwards, first-last, within 1024-65535. Keep them apart from the kernel's "
         "net.ipv4.ip_local_port_range. If they overlap, reserve them with net.ipv4.ip_local_reserved_ports, "
         "if that leaves the node enough ports (8192 or more) for its own outgoing connections; the log and "
         "portway doctor name values that fit."},
        config.ports.range, kHostPorts);
  visit({"ports.rest_s", kLive,
         "How long the host port of a forward that has ended is kept from other owners, in seconds: its "
         "clients may not have noticed yet. If no other port is left, the one that has rested for longest is "
         "given. Restarting the daemon ends it."},
        config.ports.rest, Number{0, 86'400});
  visit({"guests.networks", kLive,
         "The networks the guests live in, e.g. [\"198.18.0.0/15\", \"fd00::/8\"]: a guest's address must "
         "lie in one of them. A link-local one needs a network inside 169.254.0.0/16 or fe80::/10. Empty: no "
         "instance can "
         "be registered."},
        config.guests.networks, kNetworks);
  visit(
      {"guests.netns_directories", kLive,
       "The directories in which network namespaces of guests are mounted: an instance's namespace must lie "
       "below one of them. Whoever can register an instance can name each namespace there, so keep those "
       "of others elsewhere."},
      config.guests.netns_directories, kDirectories);
  visit({"guests.socket_directories", kLive,
         "The directories of the Unix sockets that forwards may lead to, absolute, e.g. "
         "[\"/run/firecracker\"]. Whoever can write there decides what these forwards reach. Empty: forwards "
         "lead to guests' TCP ports only."},
        config.guests.socket_directories, kDirectories);
  visit({"profiles.*.max_forwarded_ports", kLive,
         "How many port forwards an instance of this profile may have. More profiles are tables beside this "
         "one, e.g. [profiles.large]; a key that they leave out is as shown here."},
        profile.max_forwarded_ports, Number{0, 65535});
  visit({"profiles.*.allow_host_port", kLive,
         "Whether tenants may ask for a specific host port; admins always may."},
        profile.allow_host_port, Flag{});
  visit(
      {"profiles.*.max_connections", kLive,
       "Connections that each forward of such an instance can have at a time. This and the limits below hold "
       "for every forward, whatever its own limits are: the stricter one of the two is in effect. A change "
       "applies at once; connections that are there stay. 0: no limit."},
      profile.limits.max_connections, Number{0, 1'000'000});
  visit({"profiles.*.max_connections_per_source", kLive,
         "Connections at a time from one client address (IPv6: from one /64) to one forward. 0: no limit."},
        profile.limits.max_connections_per_source, Number{0, 1'000'000});
  visit({"profiles.*.max_new_connections_per_second", kLive,
         "New connections a second of one forward, with bursts of the same number. 0: no limit."},
        profile.limits.max_new_connections_per_second, Number{0, 1'000'000});
  visit({"profiles.*.max_bytes_per_second", kLive,
         "Bytes a second of one forward, each way, all its connections together. 0: no limit."},
        profile.limits.max_bytes_per_second, Number{0, 1'000'000'000'000});
  visit({"profiles.*.idle_timeout_s", kLive,
         "Seconds of silence in both directions after which a connection is ended. Only a value below "
         "proxy.idle_timeout_s, or any if that is 0, has an effect. 0: as proxy.idle_timeout_s says."},
        profile.limits.idle_timeout, Number{0, 2'592'000});
  visit(
      {"owners.max_forwards", kLive,
       "How many port forwards one owner may have over all of its instances, whoever makes them. Those that "
       "are there stay. 0: no limit but those of its instances' profiles."},
      config.owners.max_forwards, Number{0, 65535});
  visit({"owners.max_connections", kLive,
         "Connections at a time that one owner may have over all of its instances; further clients are reset "
         "and counted (owner_connections_max). Those that are there stay, and count. 0: no limit."},
        config.owners.max_connections, Number{0, 1'000'000});
  visit({"owners.max_streams", kLive,
         "Streams (events, checks, captures) that the tenant keys of one owner may have open together; three "
         "quarters of them can be of one kind."},
        config.owners.max_streams, Number{1, 48});
  visit({"store.path", kFixed,
         "The database file. SQLite puts files beside it, so its directory must be writable."},
        config.store.path, kPath);
  visit({"proxy.workers", kFixed, "Threads that move bytes. 0: one for each core."}, config.proxy.workers,
        Number{0, 64});
  visit({"proxy.io_backend", kFixed,
         "\"uring\" or \"epoll\"; \"auto\" is io_uring if the kernel allows it, else epoll."},
        config.proxy.io_backend, kIoBackend);
  visit({"proxy.source_mode", kFixed,
         "The client's address as guests see it, unless a forward sets its own mode: \"transparent\" is the "
         "client's own (needs CAP_NET_ADMIN and preferably CAP_BPF; Portway does not start if the node "
         "cannot do it), \"plain\" is the node's, \"proxy_v2\" is the node's with a PROXY protocol header "
         "before the client's bytes, \"auto\" is transparent if possible, else plain."},
        config.proxy.source_mode, kSourceMode);
  visit(
      {"proxy.source_rule_preference", kFixed,
       "The preference of Portway's routing rule in `ip rule`, used if guests see their clients' own "
       "addresses; the preference before it is taken too. Rules of other programs that come earlier can keep "
       "guests' answers away. 0: chosen at start, before everybody else's rules, 5109 at most."},
      config.proxy.source_rule_preference,
      Number{
          .min = 0,
          .max = 32'765,
          .excluded = {1},
          .why =
              "leaves no preference for the rule before it, which is taken too; it must be 0, or 2 or more"});
  visit({"proxy.source_route_table", kFixed,
         "The routing table of that rule. It holds one route, local default dev lo, which no other program "
         "may have there. Not 253 to 255, which are the system's."},
        config.proxy.source_route_table,
        Number{.min = 1,
               .max = UINT32_MAX,
               .excluded = {253, 254, 255},
               .why = "is a routing table of the system's (default, main, local); give another one"});
  visit({"proxy.source_mark_bit", kFixed,
         "The bit of the packet mark that is Portway's alone: it marks guests' answers for that rule, and is "
         "cleared from all other packets of guests. Kubernetes uses bits 14 and 15, Cilium 8 to 11, "
         "Tailscale 16 to 23, Calico by default 16 to 31. Guests do not see clients' addresses if another "
         "program's routing rule uses the bit."},
        config.proxy.source_mark_bit, Number{0, 31});
  visit({"proxy.connections_max", kFixed,
         "Connections of the whole node at a time; more are reset and counted."},
        config.proxy.connections_max, Number{1, 1'000'000});
  visit({"proxy.instance_share_percent", kFixed,
         "Percentage of proxy.connections_max that one instance can have; the rest is kept for others. A "
         "forward can have the same percentage of its instance's, and a client address (IPv6: a /64) of its "
         "forward's. All clients behind a NAT gateway or load balancer in front of the node are one address: "
         "when the node runs short of connections, that share caps them together. Half-closed connections "
         "also end sooner then, silent ones first. Of proxy.pipes_max, the same percentage is for whoever "
         "comes "
         "first; the rest is kept for instances whose connections hold few. 100: no shares."},
        config.proxy.instance_share_percent, Number{1, 100});
  visit({"proxy.connect_timeout_ms", kFixed, "Milliseconds that a guest has to answer a connection."},
        config.proxy.connect_timeout, Number{1, 600'000});
  visit({"proxy.half_close_timeout_s", kFixed,
         "Seconds of silence after which a half-closed connection (one side has finished sending) is ended. "
         "0: never."},
        config.proxy.half_close_timeout, Number{0, 604'800});
  visit({"proxy.user_timeout_s", kFixed,
         "Seconds after which a connection is ended if its guest owes an answer and sends none. A guest that "
         "keeps its window closed, and answers probes of it, stays connected. 0: the kernel's "
         "net.ipv4.tcp_retries2, about 15 minutes."},
        config.proxy.user_timeout, Number{0, 86'400});
  visit({"proxy.guest_receive_buffer_kib", kFixed,
         "Receive buffer of a connection's socket towards its guest, KiB; it grows for fast clients. Data "
         "that a slow client has not taken yet waits here and in the guest: a small buffer keeps it fresh. "
         "0: the kernel's choice (net.ipv4.tcp_rmem)."},
        config.proxy.guest_receive_buffer, Number{.min = 0, .max = 65'536, .unit = 1024});
  visit({"proxy.client_receive_buffer_kib", kFixed,
         "The same for the socket towards the client; it grows for fast guests and long paths. Needs "
         "CAP_NET_ADMIN. 0, or without it: the kernel's choice."},
        config.proxy.client_receive_buffer, Number{.min = 0, .max = 65'536, .unit = 1024});
  visit({"proxy.unsent_max_kib", kFixed,
         "How much of a connection may wait unsent in a socket, KiB (TCP_NOTSENT_LOWAT). Bytes in flight do "
         "not count, so long paths are filled. 0: as much as net.ipv4.tcp_wmem allows."},
        config.proxy.unsent_max, Number{.min = 0, .max = 65'536, .unit = 1024});
  visit({"proxy.copy_dscp", kFixed,
         "Whether the DSCP of a client's SYN is copied to what its connection sends to the guest."},
        config.proxy.copy_dscp, Flag{});
  visit({"proxy.refused_probe_ms", kFixed,
         "After a guest has refused a client, the node refuses it too, as under DNAT, until the guest's port "
         "is open to it again. Portway probes the port while clients come, with SYNs that never become a "
         "connection, at growing intervals. This is the longest interval, in milliseconds. If guests do not "
         "see their clients' addresses, all clients of the forward are refused. 0: clients are accepted and "
         "reset."},
        config.proxy.refused_probe, Number{0, 10'000});
  visit({"proxy.busy_poll_us", kFixed,
         "Microseconds that a worker polls for further events before it sleeps, as long as they follow each "
         "other within that time: it halves the latency of single connections. Other threads run in between. "
         "0: workers sleep at once."},
        config.proxy.busy_poll, Number{0, 1'000});
  visit({"proxy.keepalive_s", kFixed,
         "Seconds of silence after which TCP keepalive probes a side. A client that does not answer is "
         "disconnected. A guest is disconnected only if it answers with a RST, since a paused machine "
         "answers nothing. 0: never."},
        config.proxy.keepalive, Number{0, 32'767});
  visit({"proxy.idle_timeout_s", kFixed,
         "Seconds of silence in both directions after which a connection is ended. 0: never."},
        config.proxy.idle_timeout, Number{0, 2'592'000});
  visit({"proxy.drain_timeout_s", kFixed,
         "Seconds that connections get to end by themselves when the daemon stops or their forward is "
         "drained. 0: they are reset at once."},
        config.proxy.drain_timeout, Number{0, 86'400});
  visit({"proxy.handover_timeout_s", kFixed,
         "Seconds that connections wait for the next daemon if this one is killed or crashes: their sockets "
         "stay "
         "open, and it continues them. Then they are reset. 0: they end with the daemon."},
        config.proxy.handover_timeout, Number{0, 3'600});
  visit({"proxy.pipes_max", kFixed,
         "Pipes of the whole node at a time, each of 256 KiB of kernel memory at most and held only while "
         "bytes are in flight."},
        config.proxy.pipes_max, Number{1, 1'000'000});
  visit({"log.level", kLive,
         "The least severe lines in the daemon's own log: \"debug\", \"info\", \"warning\" or \"error\"."},
        config.log.level, kLogLevel);
  visit({"log.format", kLive,
         "\"text\": a line of text on standard error; \"json\": a JSON object in a line there; \"journal\": "
         "to systemd-journald, with fields such as PORTWAY_REQUEST_ID; \"auto\": journal if standard error "
         "leads there, else text."},
        config.log.format, kLogFormat);
  visit(
      {"log.audit", kFixed,
       "A file that gets a line of JSON for each change that somebody has asked for, whether it was made or "
       "refused: who, with which key, from where, what, the result and the request's id. Empty: none."},
      config.log.audit, kOptionalPath);
  visit({"log.audit_max_mib", kFixed,
         "The size at which log.audit is rotated: it becomes FILE.1, and that one FILE.2."},
        config.log.audit_max, Number{.min = 1, .max = 4096, .unit = 1024 * 1024});
  visit({"log.audit_files", kFixed,
         "How many files log.audit and the rotated ones are together; the oldest is deleted."},
        config.log.audit_files, Number{1, 100});
  visit({"log.access", kFixed,
         "A file that gets a line of JSON for each connection that has ended: who ended it, how, and what it "
         "carried. SIGUSR1 opens the file again after log rotation. Empty: none."},
        config.log.access, kOptionalPath);
  visit({"log.recent_connections", kFixed,
         "How many ended connections are kept in memory, for the API to report why they ended."},
        config.log.recent_connections, Number{0, 100'000});
  visit(
      {"fleet.etcd", kLive,
       "The URLs of the members of an etcd cluster (3.4 or newer), such as \"https://etcd-1.example:2379\": "
       "the node registers there and publishes its instances and forwards, for gateways. Its own API and "
       "its traffic never wait for etcd. Empty: the node is in no fleet."},
      config.fleet.etcd, kUrls);
  visit({"fleet.etcd_tls_ca", kLive,
         "The PEM file with the authorities of etcd's certificates. Empty: those of the system."},
        config.fleet.etcd_tls_ca, kOptionalPath);
  visit({"fleet.etcd_tls_certificate", kLive,
         "The PEM file with the node's certificate towards etcd, which is read again for each connection. "
         "Empty: none."},
        config.fleet.etcd_tls_certificate, kOptionalPath);
  visit({"fleet.etcd_tls_private_key", kLive,
         "The PEM file with that certificate's private key, without a passphrase. Set together with it."},
        config.fleet.etcd_tls_private_key, kOptionalPath);
  visit({"fleet.etcd_user", kLive, "The node's user in etcd. Empty: none."}, config.fleet.etcd_user,
        kFleetUser);
  visit({"fleet.etcd_password_file", kLive,
         "The file with that user's password, on one line, which only the daemon's user should be able to "
         "read. Set together with fleet.etcd_user."},
        config.fleet.etcd_password_file, kOptionalPath);
  visit({"fleet.prefix", kLive, "What all keys of this fleet in etcd begin with."}, config.fleet.prefix,
        kFleetPrefix);
  visit({"fleet.node_id", kLive,
         "The node's name in the fleet, 1 to 64 of A-Z a-z 0-9 . _ -; each node has its own. Empty: "
         "node.public_hostname."},
        config.fleet.node_id, kFleetNodeId);
  visit({"fleet.address", kLive,
         "The URL under which gateways reach the node's API, such as \"https://10.0.0.7:8443\". Empty: "
         "node.public_hostname with the port of the first entry of api.listen that is not on loopback."},
        config.fleet.address, kOptionalUrl);
  visit({"fleet.lease_ttl_s", kLive,
         "Seconds after which a node that etcd does not hear of is lost. The node sends a keep-alive three "
         "times in "
         "that time."},
        config.fleet.lease_ttl, Number{5, 60});
  visit({"fleet.gateways", kLive,
         "The gateways that may call the node's API for others, by a DNS name of their client certificates, "
         "such as [\"gateway.example.com\"]. A gateway acts as whatever caller it names. It needs a listener "
         "with a client_ca. Empty: none."},
        config.fleet.gateways, kGateways);
  visit(
      {"gateway.node_tls_ca", kFixed,
       "Of portway-gateway only: the PEM file with the authorities of the nodes' certificates. Empty: those "
       "of the system."},
      config.gateway.node_tls_ca, kOptionalPath);
  visit({"gateway.node_tls_certificate", kFixed,
         "The PEM file with the gateway's certificate towards nodes, by which they know it (fleet.gateways); "
         "it is read again for each connection. Empty: none, and no node does what it is asked to."},
        config.gateway.node_tls_certificate, kOptionalPath);
  visit({"gateway.node_tls_private_key", kFixed,
         "The PEM file with that certificate's private key, without a passphrase. Set together with it."},
        config.gateway.node_tls_private_key, kOptionalPath);
  visit(
      {"process.sandbox", kFixed,
       "Whether the threads that handle what strangers send are confined: to the system calls that they need "
       "(seccomp), and to writing where this file says (Landlock, Linux 5.13). What they are refused is in "
       "the log."},
      config.process.sandbox, Flag{});
}

}  // namespace portway
