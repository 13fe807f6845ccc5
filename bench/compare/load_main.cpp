// The load generator of compare.py: a server for the guest's side, clients for the other. One thread each.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <utility>

#include "bench/compare/bare_relay.h"
#include "bench/compare/load_bystander.h"
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

  BareRelayOptions bare;
  CLI::App* relay = app.add_subcommand("relay", "Relay with as little as possible until killed");
  relay->add_option("--forward", bare.forwards, "PORT=ADDRESS:PORT, may be repeated")->required();

  ClientOptions options;
  std::vector<std::string> targets;
  std::vector<std::string> beside;
  const auto add_client = [&](const char* name, const char* description) {
    CLI::App* client = app.add_subcommand(name, description);
    client
        ->add_option("--target", targets,
                     "ADDRESS:PORT[,FROM[,PID...]]: where to connect to, the first address to connect from, "
                     "whose CPU time to report")
        ->required();
    client->add_option("--beside", beside, "ADDRESS:PORT of each target's bulk stream, for mix");
    client->add_option("--from-count", options.sources, "How many addresses follow on FROM")
        ->capture_default_str();
    client->add_option("--connections", options.connections, "At the same time")->capture_default_str();
    client->add_option("--message-bytes", options.message_bytes, "Of a message")->capture_default_str();
    client->add_option("--slices", options.slices, "Of each target")->capture_default_str();
    client->add_option("--slice", options.slice_s, "Seconds of a slice that count")->capture_default_str();
    client->add_option("--lead-in", options.lead_in_s, "Seconds before them")->capture_default_str();
    return client;
  };
  const std::pair<const CLI::App*, Mode> modes[] = {
      {add_client("download", "Bulk from the target's source port"), Mode::kDownload},
      {add_client("upload", "Bulk to the target's sink port"), Mode::kUpload},
      {add_client("ping", "Messages and their echoes on lasting connections"), Mode::kPing},
      {add_client("close", "Connect, message, echo, close"), Mode::kClose},
      {add_client("mix", "ping, and a download beside it"), Mode::kMix},
  };
  const CLI::App* idle = add_client("idle", "Open connections and hold them until standard input ends");

  BystanderOptions watch;
  CLI::App* bystander = app.add_subcommand(
      "bystander", "Send small messages at a steady rate, and tell how long their echoes take");
  bystander->add_option("--target", watch.target, "ADDRESS:PORT of an echo")->required();
  bystander->add_option("--connections", watch.connections, "That take turns")->capture_default_str();
  bystander->add_option("--interval", watch.interval_s, "Seconds between two messages")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  bystander->add_option("--seconds", watch.seconds, "Of messages")->capture_default_str();
  bystander->add_option("--watch", watch.watch, "A processor: tell how long it stood still");

  ChurnOptions busy;
  CLI::App* churn = app.add_subcommand("churn", "Connect and close again at once, until standard input ends");
  churn->add_option("--target", busy.target, "ADDRESS:PORT or [ADDRESS]:PORT")->required();
  churn->add_option("--from", busy.source, "The first address to connect from, with IPv4")
      ->capture_default_str();
  churn->add_option("--from-count", busy.sources, "How many addresses follow on it")->capture_default_str();
  churn->add_option("--connections", busy.connections, "At the same time")->capture_default_str();

  HoldOptions held;
  CLI::App* hold =
      app.add_subcommand("hold", "Open connections, read nothing, and close all when standard input ends");
  hold->add_option("--target", held.target, "ADDRESS:PORT")->required();
  hold->add_option("--from", held.source, "The first address to connect from")->capture_default_str();
  hold->add_option("--from-count", held.sources, "How many addresses follow on it")->capture_default_str();
  hold->add_option("--connections", held.connections, "To open")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  if (*server) serve(ports);
  if (*bridge) bridge_taps(taps);
  if (*relay) relay_bare(bare);
  if (*bystander) run_bystander(watch);
  if (*churn) run_churn(busy);
  if (*hold) run_hold(held);
  for (const std::string& text : targets) options.targets.push_back(parse_target(text));
  for (const std::string& text : beside) options.beside.push_back(parse_endpoint(text));
  for (const auto& [chosen, mode] : modes) {
    if (*chosen) run_in_turn(options, mode);
  }
  if (*idle) run_idle(options);
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench_load: %s\n", error.what());
  return 1;
}
