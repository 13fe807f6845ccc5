#include "client/healthcheck.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "client/contexts.h"
#include "client/local_server.h"
#include "client/output.h"
#include "client/request.h"
#include "config/config.h"

namespace portway {
namespace {

constexpr std::chrono::seconds kTimeout(3);

Failure unhealthy(Failure failure) {
  failure.exit = Exit::kRefused;
  return failure;
}

/// As the daemon reads it: in a container this process has its environment.
Result<Config> read_config(const std::string& file, const Environment& environment) {
  std::vector<std::string> entries;
  entries.reserve(environment.size());
  for (const auto& [name, value] : environment) entries.push_back(fmt::format("{}={}", name, value));
  std::vector<const char*> pointers;
  pointers.reserve(entries.size() + 1);
  for (const std::string& entry : entries) pointers.push_back(entry.c_str());
  pointers.push_back(nullptr);
  return load_config(file, environment_overrides(pointers.data()));
}

/// Where to ask this node's daemon: a Unix socket, else a listener that wants no certificate of us, which
/// metrics.listen is, too; else the first one.
std::optional<std::string> url_of(const Config& config, bool has_certificate, bool ready) {
  const std::vector<LocalServer> servers = local_servers(config.api);
  const auto first = [&](auto wanted) -> std::optional<std::string> {
    const auto found = std::ranges::find_if(servers, wanted);
    return found == servers.end() ? std::nullopt : std::optional(found->server.url);
  };
  if (auto url = first([](const LocalServer& each) { return each.is_unix; })) return url;
  if (auto url = first([&](const LocalServer& each) { return has_certificate || !each.wants_certificate; }))
    return url;
  if (config.metrics.listen && !ready) {
    if (std::string url = local_url(*config.metrics.listen, false); !url.empty()) return url;
  }
  return first([](const LocalServer&) { return true; });
}

}  // namespace

Outcome<void> run_healthcheck(const Invocation& invocation, Console& console) {
  auto arguments = with_context(invocation);
  if (!arguments) return unhealthy(arguments.error());
  const bool ready = arguments->has("--ready");
  std::string url = arguments->text("--server");
  const std::string& file = arguments->text("--config");
  if (!file.empty()) {
    const auto config = read_config(file, invocation.environment);
    if (!config) return Failure{Exit::kRefused, config.error().detail};
    auto found = url_of(*config, arguments->has("--cert"), ready);
    if (!found) {
      return Failure{Exit::kRefused,
                     file + ": api.listen has port 0 only, which is another port at each start.",
                     "Set a port, or give the server with --server."};
    }
    url = std::move(*found);
  }
  auto server = parse_server_address(url);
  if (!server) return unhealthy(server.error());
  const long timeout = arguments->given("--timeout") ? arguments->number("--timeout").value_or(0) : 0;
  const HttpClient client({.server = std::move(*server),
                           .ca_file = arguments->text("--ca"),
                           .certificate_file = arguments->text("--cert"),
                           .private_key_file = arguments->text("--cert-key"),
                           .timeout = timeout > 0 ? std::chrono::seconds(timeout) : kTimeout,
                           // An expired certificate is no reason to restart the daemon.
                           .trusts_any_certificate = !file.empty()});
  const auto answer = ask(client, {.method = "GET", .target = ready ? "/readyz" : "/healthz"});
  if (!answer) return unhealthy(answer.error());
  if (text_of(*answer, "status") != (ready ? "ready" : "ok")) {
    return Failure{Exit::kRefused, client.options().server.url + ": the answer is not Portway's.",
                   "Check that Portway's API listens there (--server), and not another service."};
  }
  if (invocation.wants_data()) console.out << as_data(invocation.format(), *answer);
  return {};
}

}  // namespace portway
