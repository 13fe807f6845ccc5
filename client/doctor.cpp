#include "client/doctor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/value_from.hpp>
#include <ostream>

#include "client/local_server.h"
#include "client/output.h"
#include "client/request.h"
#include "network/policy_routing.h"
#include "proxy/uring_io.h"

namespace portway {
namespace {

namespace json = boost::json;

const Command& instances_list() {
  return *std::ranges::find(commands(), "instances list", &Command::full_name);
}

void ask_daemon(const HttpClient& client, ApiFacts& api) {
  api.server = client.options().server.url;
  if (const auto ready = ask(client, {.method = "GET", .target = "/readyz"}); !ready) {
    api.down = ready.error();
    return;
  }
  if (const auto version = ask(client, {.method = "GET", .target = "/version"}))
    api.version = text_of(*version, "version");
  if (const auto info = ask(client, {.method = "GET", .target = "/v1/info"})) {
    if (text_of(*info, "role") == "gateway") {
      api.down = Failure{Exit::kRefused, api.server + " is a gateway, and this is about one node.",
                         "Give the address of this node's API with --server."};
      return;
    }
    api.io_backend = text_of(*info, "io_backend");
    api.io_backend_reason = text_of(*info, "io_backend_reason");
    const json::value* guard = info->if_contains("source_guard");
    api.source_guard = guard != nullptr && guard->is_bool() && guard->get_bool();
  }
  const auto instances = fetch(client, instances_list(), {});
  if (!instances) {
    api.refused = instances.error();
    return;
  }
  const json::value* list = instances->if_contains("instances");
  if (list == nullptr || !list->is_array()) return;
  for (const json::value& item : list->get_array()) {
    if (!item.is_object() || text_of(item.get_object(), "state") != "running") continue;
    const json::object& instance = item.get_object();
    const std::string netns = text_of(instance, "netns");
    const std::string tap_netns = text_of(instance, "tap_netns");
    const bool tap_elsewhere = tap_netns.empty() ? !netns.empty() : tap_netns != "node";
    if (!netns.empty() || tap_elsewhere) api.in_namespaces.push_back(text_of(instance, "id"));
    if (tap_elsewhere || text_of(instance, "tap").empty()) continue;
    api.running.push_back({text_of(instance, "id"), text_of(instance, "tap"), text_of(instance, "device"),
                           text_of(instance, "guest_address")});
  }
}

/// The first that can be asked without a certificate of ours; else the first that is known.
std::optional<KnownServer> server_of(const Config::Api& api) {
  const std::vector<LocalServer> servers = local_servers(api);
  if (servers.empty()) return std::nullopt;
  const auto found = std::ranges::find(servers, false, &LocalServer::wants_certificate);
  return (found == servers.end() ? servers.front() : *found).server;
}

void read_config(NodeFacts& node) {
  std::error_code error;
  node.config_found = std::filesystem::exists(node.config_file, error);
  if (!node.config_found) return;
  auto config = load_config(node.config_file);
  if (config) {
    node.config = std::move(*config);
  } else {
    node.config_error = config.error();
  }
}

json::object as_json(const NamedFinding& named) {
  json::object check{
      {"name", named.name}, {"grade", to_string(named.finding.grade)}, {"detail", named.finding.detail}};
  if (!named.finding.remedy.empty()) check["remedy"] = named.finding.remedy;
  return check;
}

json::object as_json(const CapabilityRow& row) {
  json::object capability{{"name", row.use->name},
                          {"held", row.held},
                          {"feature", row.use->feature},
                          {"kernel", row.use->kernel},
                          {"without_it", row.use->without_it}};
  capability["processes"] = json::value_from(row.processes);
  return capability;
}

void print_capabilities(const std::vector<CapabilityRow>& capabilities, Console& console) {
  std::vector<std::vector<std::string>> rows;
  for (const CapabilityRow& row : capabilities) {
    if (row.use == kCapabilityUses.begin()) {
      rows.push_back({""});
      rows.push_back(
          {"CAPABILITY",
           row.processes.empty() ? "SHELL" : fmt::format("PROCESS {}", fmt::join(row.processes, ", ")), "FOR",
           "LINUX"});
    }
    rows.push_back({std::string(row.use->name), row.held ? "yes" : "no", std::string(row.use->feature),
                    std::string(row.use->kernel)});
    if (!row.held) rows.push_back({"", "", "-> without it: " + std::string(row.use->without_it)});
  }
  console.out << aligned(rows);
}

}  // namespace

Outcome<void> report(const std::vector<NamedFinding>& findings,
                     const std::vector<CapabilityRow>& capabilities, Format format, Console& console) {
  json::array checks;
  std::vector<std::vector<std::string>> rows;
  for (const NamedFinding& named : findings) {
    const Finding& finding = named.finding;
    checks.push_back(as_json(named));
    rows.push_back({std::string(to_string(finding.grade)), std::string(named.name), finding.detail});
    if (!finding.remedy.empty()) rows.push_back({"", "", "-> " + finding.remedy});
  }
  const auto failed =
      std::ranges::count(findings, Grade::kFail, [](const auto& named) { return named.finding.grade; });
  if (is_data(format)) {
    json::array held;
    for (const CapabilityRow& row : capabilities) held.push_back(as_json(row));
    console.out << as_data(format,
                           json::object{{"checks", checks}, {"failed", failed}, {"capabilities", held}});
  } else {
    console.out << aligned(rows);
    print_capabilities(capabilities, console);
  }
  if (failed == 0) return {};
  return Failure{Exit::kRefused, std::to_string(failed) + " of the checks failed."};
}

Outcome<void> run_doctor(const Invocation& invocation, Console& console) {
  NodeFacts node;
  node.config_file = invocation.arguments.text("--config");
  read_config(node);
  std::optional<KnownServer> known;
  // It is about this node: only a context that is named here can mean it.
  if (!invocation.arguments.given("--server") &&
      invocation.arguments.origin("--context") != Origin::kOption) {
    known = server_of(node.config.api);
  }
  const auto client = known ? make_client(invocation, console, *known) : make_client(invocation, console);
  if (!client) return client.error();
  node.subjects = find_subjects(node.root);
  node.try_io_uring = []() -> Result<void> {
    const auto ring = make_uring_io();
    if (!ring) return ring.error();
    return {};
  };
  node.host_addresses = [] { return local_addresses(); };
  node.link = link_state;
  ask_daemon(*client, node.api);
  return report(look_at(node), capability_rows(node), invocation.format(), console);
}

}  // namespace portway
