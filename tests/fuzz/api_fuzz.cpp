// Any body and query to the routes that change something, with a tenant's and with an admin's key: the
// answer is a documented one, and a refused request leaves nothing behind.
#include <spdlog/spdlog.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tests/control/node.h"

namespace {

struct Target {
  const char* method;
  const char* path;
};

constexpr auto kTargets = std::to_array<Target>({{"POST", "/instances/vm-1/port-forwards"},
                                                 {"POST", "/instances/vm-1/port-forwards:batch"},
                                                 {"PATCH", nullptr},
                                                 {"PUT", "/instances/vm-2"},
                                                 {"POST", "/api-keys"},
                                                 {"GET", "/instances?"},
                                                 {"GET", "/"}});

struct Fixture {
  Fixture() : node("[profiles.default]\nmax_forwarded_ports = 60000\n") {
    spdlog::set_level(spdlog::level::off);
    node.put("vm-1");
    tenant = node.tenant_key();
    const auto made =
        node.json(node.call("POST", "/instances/vm-1/port-forwards", R"({"guest_port": 3000})"));
    forward = "/instances/vm-1/port-forwards/" + std::string(made.at("port_forward").at("id").as_string());
  }

  portway::test::Node node;
  std::string tenant;
  std::string forward;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Fixture fixture;
  if (size == 0) return 0;
  const Target& target = kTargets[(data[0] >> 1) % kTargets.size()];
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const bool reads = std::string_view(target.method) == "GET";
  std::string path = target.path == nullptr ? fixture.forward : target.path;
  if (reads) path += text;
  const std::string_view key =
      (data[0] & 1) != 0 ? std::string_view(fixture.tenant) : portway::test::Node::kAdminKey;
  const auto& registry = fixture.node.control().registry();
  const std::size_t before = registry.forward_count() + registry.instance_count();
  const portway::Response response = fixture.node.call(target.method, path, reads ? "" : text, key);
  if (response.status >= 500 && response.status != 503) std::abort();
  const std::size_t after = registry.forward_count() + registry.instance_count();
  if (response.status >= 400 && after != before) std::abort();
  // What was created is deleted again, or the ports run out.
  if (after != before) {
    fixture.node.call("DELETE", "/instances/vm-2");
    for (const portway::Forward* forward : registry.forwards("vm-1")) {
      const std::string made = "/instances/vm-1/port-forwards/" + portway::to_string(forward->id);
      if (made != fixture.forward) fixture.node.call("DELETE", made);
    }
  }
  return 0;
}
