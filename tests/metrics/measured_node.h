// What an exporter reads, with numbers that a test or a benchmark sets.
#pragma once

#include <array>
#include <boost/functional/hash.hpp>
#include <optional>
#include <string>
#include <unordered_map>

#include "metrics/exporter.h"
#include "tests/control/fake_dataplane.h"

namespace portway::test {

/// A node with forwards, two workers and an API.
class MeasuredNode : NodeNumbersReader {
 public:
  class Counted : public FakeDataplane {
   public:
    std::optional<ForwardStats> forward_stats(const ForwardId& id) const override {
      const auto found = stats.find(id);
      return found == stats.end() ? std::nullopt : std::optional(found->second);
    }
    NodeStats node_stats() const override {
      return {.io_backend = io_backend,
              .io_backend_reason = io_backend_reason,
              .workers = {&workers[0], &workers[1]}};
    }

    std::unordered_map<ForwardId, ForwardStats, boost::hash<ForwardId>> stats;
    std::array<WorkerCounters, 2> workers;
    std::string io_backend = "uring";
    std::string io_backend_reason;
  };

  MeasuredNode() = default;
  MeasuredNode(const MeasuredNode&) = delete;
  MeasuredNode& operator=(const MeasuredNode&) = delete;

  const Forward& add_forward(std::uint16_t host_port, const std::string& label = "",
                             const std::string& instance_id = "vm-1") {
    Instance instance;
    instance.id = instance_id;
    registry.put_instance(instance);
    Forward forward;
    forward.id = make_uuid();
    forward.instance_id = instance_id;
    forward.label = label;
    forward.guest_port = 3000;
    forward.host_port = host_port;
    dataplane.stats[forward.id] = {.id = forward.id};
    return registry.add_forward(forward);
  }
  void remove_forward(const ForwardId& id) {
    registry.remove_forward(id);
    dataplane.stats.erase(id);
  }

  Exporter exporter() const { return Exporter({registry, dataplane, ports, api, *this}); }

  Registry registry;
  Counted dataplane;
  PortAllocator ports{{20000, 20099}};
  ApiStats api;
  NodeNumbers numbers;

 private:
  NodeNumbers read_numbers() const override { return numbers; }
};

}  // namespace portway::test
