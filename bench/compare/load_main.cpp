// The load generator of compare.py: a server for the guest's side, clients for the other. One thread each.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "bench/compare/load_client.h"
#include "bench/compare/load_net.h"
#include "bench/compare/load_server.h"
#include "bench/compare/tap_bridge.h"

int main(int argc, char** argv) try {
  using namespace portway::bench;
  CLI::App app{"Load for comparing TCP forwarders; compare.py runs it."};
  app.require_subcommand(1);

  ServerPorts ports;
  CLI::App* server = app.add_subcommand("server", "Swallow, pour out and echo until killed");
  server->add_option("--sink", ports.sink, "Port that swallows")->capture_default_str();
  server->add_option("--source", ports.source, "Port that pours out")->capture_default_str();
  server->add_option("--echo", ports.echo, "Port that echoes")->capture_default_str();

  TapBridgeOptions taps;
  CLI::App* bridge = app.add_subcommand("bridge", "Carry frames between two taps until killed");
  bridge->add_option("--device", taps.device, "Tap to make here")->required();
  bridge->add_option("--guest-device", taps.guest_device, "Tap to make in the guest")->required();
  bridge->add_option("--guest-namespace", taps.guest_namespace, "Path of the guest's network namespace")
      ->required();

  ClientOptions options;
  std::string target;
  const auto add_client = [&](const char* name, const char* description) {
    CLI::App* client = app.add_subcommand(name, description);
    client->add_option("--target", target, "ADDRESS:PORT to connect to")->required();
    client->add_option("--from", options.source, "First address to connect from")->capture_default_str();
    client->add_option("--from-count", options.sources, "How many addresses follow on it")
        ->capture_default_str();
    client->add_option("--connections", options.connections, "At the same time")->capture_default_str();
    client->add_option("--message-bytes", options.message_bytes, "Of a message")->capture_default_str();
    client->add_option("--warm-up", options.warm_up_s, "Seconds not measured")->capture_default_str();
    client->add_option("--seconds", options.seconds, "Seconds measured")->capture_default_str();
    client->add_option("--subject", options.subject, "Process whose CPU time is told, may be repeated");
    return client;
  };
  const CLI::App* download = add_client("download", "Bulk from the target's source port");
  const CLI::App* upload = add_client("upload", "Bulk to the target's sink port");
  const CLI::App* ping = add_client("ping", "Messages and their echoes on lasting connections");
  const CLI::App* close = add_client("close", "Connect, message, echo, close");
  const CLI::App* idle = add_client("idle", "Open connections and hold them until standard input ends");
  CLI11_PARSE(app, argc, argv);

  if (*server) serve(ports);
  if (*bridge) bridge_taps(taps);
  options.target = parse_endpoint(target);
  // A subject that loses an event must not stop the comparison for ever.
  if (!*idle) ::alarm(static_cast<unsigned>(options.warm_up_s + options.seconds) + 30);
  if (*download) run_bulk(options, false);
  if (*upload) run_bulk(options, true);
  if (*ping) run_ping(options);
  if (*close) run_close(options);
  if (*idle) run_idle(options);
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench_load: %s\n", error.what());
  return 1;
}
