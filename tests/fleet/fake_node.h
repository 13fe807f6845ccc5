// A node of a fleet without a daemon: what it has is plain data, its publisher is real.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fleet/fleet_node.h"
#include "fleet/publisher.h"

namespace portway::test {

/// A UUIDv7 of this time.
inline Uuid session_at(Timestamp time) {
  Uuid id = make_uuid();
  const auto ms = static_cast<std::uint64_t>(time.time_since_epoch().count());
  for (std::size_t i = 0; i < 6; ++i) id.data[i] = static_cast<std::uint8_t>(ms >> (8 * (5 - i)));
  return id;
}

class FakeNode final : public FleetNode {
 public:
  struct Machine {
    Uuid session{};
    bool running = true;
    bool moved = false;
    std::string text = {};
    std::map<ForwardId, std::string> forwards = {};
  };

  explicit FakeNode(std::string id) : id_(std::move(id)) {}

  const std::string& id() const { return id_; }

  // --- What happens on the node.

  void put(const std::string& instance, const Uuid& session = make_uuid()) {
    machines_[instance] = {.session = session};
    if (publisher_) publisher_->on_instance(instance);
  }
  ForwardId forward(const std::string& instance, const std::string& text = "") {
    const ForwardId id = make_uuid();
    change_forward(instance, id, text);
    return id;
  }
  void change_forward(const std::string& instance, const ForwardId& id, const std::string& text) {
    machines_.at(instance).forwards[id] = text;
    if (publisher_) publisher_->on_forward(instance, id);
  }
  void remove_forward(const std::string& instance, ForwardId id) {  // a copy: it may be the one that goes
    machines_.at(instance).forwards.erase(id);
    if (publisher_) publisher_->on_forward(instance, id);
  }
  void change(const std::string& instance, const std::string& text) {
    machines_.at(instance).text = text;
    if (publisher_) publisher_->on_instance(instance);
  }
  void remove(const std::string& instance) {
    machines_.erase(instance);
    if (publisher_) publisher_->on_instance(instance);
  }
  void stop(const std::string& instance) {
    Machine& machine = machines_.at(instance);
    machine.running = false;
    machine.forwards.clear();
    if (publisher_) publisher_->on_instance(instance);
  }
  void change_record(const std::function<void(NodeRecord&)>& change) {
    change(record_);
    if (publisher_) publisher_->on_record();
  }

  // --- Its publisher.

  void join(const boost::asio::any_io_executor& executor, PublisherOptions options) {
    options.node_id = id_;
    if (options.identity.empty()) options.identity = "identity of " + id_;
    publisher_ = Publisher::create(executor, std::move(options), *this,
                                   [this](FleetFault fault, const std::string& detail) {
                                     if (detail.empty()) {
                                       faults.erase(fault);
                                     } else {
                                       faults[fault] = detail;
                                     }
                                   })
                     .value();
  }
  void leave() { publisher_.reset(); }
  Publisher& publisher() { return *publisher_; }

  const std::map<std::string, Machine>& machines() const { return machines_; }
  std::map<FleetFault, std::string> faults;
  std::vector<std::pair<std::string, Loss>> lost;  // instances
  std::chrono::milliseconds clock_ahead{0};

  // --- FleetNode

  NodeRecord record() const override { return record_; }
  Timestamp time() const override { return now() + clock_ahead; }
  std::vector<std::string> instance_ids() const override {
    std::vector<std::string> ids;
    for (const auto& [id, machine] : machines_) ids.push_back(id);
    return ids;
  }
  std::optional<InstanceState> instance(std::string_view id) const override {
    const auto found = machines_.find(std::string(id));
    if (found == machines_.end()) return std::nullopt;
    const Machine& machine = found->second;
    return InstanceState{.session_id = machine.session, .running = machine.running, .moved = machine.moved};
  }
  std::string instance_json(std::string_view id) const override {
    const Machine& machine = machines_.at(std::string(id));
    return R"({"owner":"alice","session_id":")" + to_string(machine.session) + R"(","running":)" +
           (machine.running ? "true" : "false") + R"(,"text":")" + machine.text + R"("})";
  }
  std::vector<ForwardId> forward_ids(std::string_view instance_id) const override {
    std::vector<ForwardId> ids;
    const auto found = machines_.find(std::string(instance_id));
    if (found == machines_.end()) return ids;
    for (const auto& [id, text] : found->second.forwards) ids.push_back(id);
    return ids;
  }
  std::optional<std::string> forward(std::string_view instance_id, const ForwardId& id) const override {
    const auto found = machines_.find(std::string(instance_id));
    if (found == machines_.end() || !found->second.forwards.contains(id)) return std::nullopt;
    return R"({"label":")" + found->second.forwards.at(id) + R"("})";
  }
  void on_lost(std::string_view instance_id, const Uuid& session_id, Loss loss) override {
    const std::string id(instance_id);
    const auto found = machines_.find(id);
    if (found == machines_.end() || found->second.session != session_id) return;
    lost.emplace_back(id, loss);
    if (loss == Loss::kDeleted) {
      remove(id);
    } else if (found->second.running) {
      found->second.moved = true;
      stop(id);
    }
  }

 private:
  const std::string id_;
  NodeRecord record_{.address = "https://" + id_ + ".example:8443",
                     .hostname = id_ + ".example",
                     .version = "1.0",
                     .started_at = now(),
                     .capacity = {.connections = 1000, .host_ports = 100}};
  std::map<std::string, Machine> machines_;
  std::unique_ptr<Publisher> publisher_;
};

}  // namespace portway::test
