#include "client/doctor.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <ostream>

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

/// The API's address as seen from this node; nothing if it cannot be known (port 0).
std::optional<KnownServer> server_of(const Config::Api& api) {
  if (const auto* path = std::get_if<UnixPath>(&api.listen)) return KnownServer{to_string(*path)};
  const auto& endpoint = std::get<Endpoint>(api.listen);
  if (endpoint.port() == 0) return std::nullopt;
  IpAddress address = endpoint.address();
  if (address.is_unspecified()) {
    address = address.is_v4() ? IpAddress(boost::asio::ip::address_v4::loopback())
                              : IpAddress(boost::asio::ip::address_v6::loopback());
  }
  const bool tls = !api.tls_certificate.empty();
  return KnownServer{(tls ? "https://" : "http://") + to_string(Endpoint(address, endpoint.port())),
                     api.tls_certificate};
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

}  // namespace

Outcome<void> report(const std::vector<NamedFinding>& findings, bool json_wanted, Console& console) {
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
  console.out << (json_wanted ? pretty_json(json::object{{"checks", checks}, {"failed", failed}})
                              : aligned(rows));
  if (failed == 0) return {};
  return Failure{Exit::kRefused, std::to_string(failed) + " of the checks failed."};
}

Outcome<void> run_doctor(const Invocation& invocation, Console& console) {
  NodeFacts node;
  node.config_file = invocation.arguments.text("--config");
  read_config(node);
  std::optional<KnownServer> known;
  if (!invocation.arguments.given("--server")) known = server_of(node.config.api);
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
  return report(look_at(node), invocation.wants_json(), console);
}

}  // namespace portway
