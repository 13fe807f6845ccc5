// Nodes of a fleet without a daemon, and a real etcd.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fleet/claim.h"
#include "fleet/fleet_keys.h"
#include "fleet/node_record.h"
#include "fleet/publisher.h"
#include "tests/fleet/etcd_world.h"
#include "tests/fleet/fake_node.h"

namespace portway::test {

class FleetTest : public EtcdTest {
 protected:
  void TearDown() override {
    for (const auto& node : nodes_) node->leave();
    context_.restart();
    while (context_.poll() > 0) context_.restart();
    EtcdTest::TearDown();
  }

  FakeNode& add_node(const std::string& id) {
    nodes_.push_back(std::make_unique<FakeNode>(id));
    return *nodes_.back();
  }
  FakeNode& join_new(const std::string& id) {
    FakeNode& node = add_node(id);
    join(node);
    return node;
  }
  PublisherOptions publisher_options() const {
    PublisherOptions out{.etcd = options()};
    out.etcd.request_timeout = std::chrono::seconds(10);
    out.lease_ttl = lease_ttl_;
    return out;
  }
  void join(FakeNode& node) { join(node, publisher_options()); }
  void join(FakeNode& node, PublisherOptions options) {
    node.join(context_.get_executor(), std::move(options));
  }

  /// Lets the publishers work until it is true. They have most of the time, however long the question takes.
  void until(const std::function<bool()>& is_true, const std::string& what) {
    using Clock = std::chrono::steady_clock;
    const auto deadline = Clock::now() + std::chrono::seconds(100);
    for (;;) {
      const auto asked = Clock::now();
      if (is_true()) return;
      const auto took = Clock::now() - asked;
      if (Clock::now() > deadline) throw std::runtime_error("never: " + what);
      context_.restart();
      context_.run_for(std::max<Clock::duration>(std::chrono::milliseconds(10), 2 * took));
    }
  }

  /// All keys below the prefix, without it, and their values.
  std::map<std::string, std::string> stored(const std::string& below = "") {
    const std::string prefix = "/portway/";
    std::map<std::string, std::string> out;
    std::optional<EtcdRange> range = EtcdRange{.keys = EtcdKeys::with_prefix(prefix + below), .limit = 100};
    while (range) {
      const auto page = wait(etcd().range(*range));
      if (!page) return {};
      for (const EtcdKeyValue& kv : page->kvs) out[kv.key.substr(prefix.size())] = kv.value;
      range = next_page(*range, *page);
    }
    return out;
  }
  std::optional<Claim> claim_of(const std::string& instance) {
    const auto found = stored("claims/" + instance);
    return found.empty() ? std::nullopt : parse_claim(found.begin()->second);
  }
  /// What a node would have in etcd if everything of it were published.
  static std::map<std::string, std::string> wanted(const FakeNode& node) {
    const FleetKeys keys("");
    std::map<std::string, std::string> out;
    for (const auto& [id, machine] : node.machines()) {
      if (machine.moved) continue;
      out[keys.instance(node.id(), id)] = node.instance_json(id);
      for (const auto& [forward, text] : machine.forwards) {
        out[keys.forward(node.id(), id, forward)] = *node.forward(id, forward);
      }
    }
    return out;
  }
  void until_published(FakeNode& node) {
    until([&] { return stored("state/" + node.id() + "/") == wanted(node); }, "published: " + node.id());
  }
  std::int64_t revision() { return done(etcd().range({.keys = EtcdKeys::one("none")})).header.revision; }

  std::vector<std::unique_ptr<FakeNode>> nodes_;
  std::chrono::seconds lease_ttl_{12};  // whoever waits for a lease's end makes it shorter
};

}  // namespace portway::test
