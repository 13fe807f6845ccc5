// What happens in the fleet, as one stream: what etcd says of changes, in etcd's order.
//
// An event's id is the revision of etcd and the number of the change in it (or more, if several events follow
// from one change), so all gateways give an event the same id, and a reader continues at whichever gateway it
// finds. A node's own GET /events has more: what is not state, such as refused clients.
//
// The last events are kept. A reader that was away for longer, or for a time of which this gateway does not
// know everything (it has started since, or etcd was restored from a backup), learns so (a gap) and reads the
// lists again. A slow reader holds up nobody.
//
// One thread only.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/json/object.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "api/sse.h"
#include "control/auth.h"
#include "fleet/fleet_follower.h"

namespace portway {

struct FleetEventId {
  std::int64_t revision = 0;
  std::uint32_t change = 0;  // in that revision, from 1 on; 0: before the first one

  friend bool operator<(const FleetEventId& a, const FleetEventId& b) {
    return std::tie(a.revision, a.change) < std::tie(b.revision, b.change);
  }
};

struct FleetEvent {
  std::string_view type;         // of static storage duration
  std::string owner = {};        // the tenant whose keys see it, besides admins'; empty: admins only
  std::string instance_id = {};  // empty: it is about a node
  std::string data = {};         // JSON
  FleetEventId id = {};
};

class FleetEvents final : public FleetListener {
 public:
  static constexpr std::size_t kKept = 16'384;
  static constexpr std::size_t kBytesKept = std::size_t{32} << 20;

  FleetEvents(boost::asio::io_context& context, std::string prefix)
      : context_(context), keys_(std::move(prefix)) {}
  FleetEvents(const FleetEvents&) = delete;
  FleetEvents& operator=(const FleetEvents&) = delete;

  /// Before the first change. `view` outlives its last one.
  void follow(const FleetView& view) { view_ = &view; }

  void on_change(const EtcdEvent& event, const std::string& before) override;
  void on_relisted(std::int64_t revision) override;

  /// Where the last change was: what is true in the view follows from the events up to this one.
  std::string last_id() const;

  /// Until the view has changed once more; false: it has not by then.
  boost::asio::awaitable<bool> next_change(std::chrono::steady_clock::time_point deadline);

  /// Until the view has come as far as the event with this id, which another gateway may have told already.
  boost::asio::awaitable<void> wait_until_at(std::string id, std::chrono::steady_clock::time_point deadline);

  /// The events that `caller` may see: those after `last_event_id`, or from now on if that is empty. The
  /// source must not outlive this object.
  std::unique_ptr<SseSource> subscribe(const Principal& caller, std::string_view last_event_id);

 private:
  class Subscription;
  using Subscriptions = std::list<Subscription*>;

  void on_claim(const EtcdEvent& event, const FleetKey& key, const std::string& value_before);
  void on_instance(const EtcdEvent& event, const FleetKey& key, const std::string& value_before);
  void tell_owner_before(const FleetKey& key, const boost::json::object& before, bool same_session);
  void tell_forwards(const FleetViewInstance& shown);
  void on_forward(const EtcdEvent& event, const FleetKey& key, const std::string& value_before);
  void on_node(const EtcdEvent& event, const FleetKey& key, const std::string& value_before);
  void keep(FleetEvent event);
  void end_waiting();

  boost::asio::io_context& context_;
  const FleetKeys keys_;
  const FleetView* view_ = nullptr;
  std::deque<FleetEvent> kept_;
  std::uint64_t first_ = 0;  // number of the first one that is kept
  std::size_t bytes_ = 0;
  FleetEventId known_after_;  // every event after this one is kept, or is to come
  FleetEventId last_;         // the last change, with or without an event
  std::uint64_t gaps_ = 0;    // how often a listing had to stand for events
  Subscriptions subscriptions_;
  std::list<boost::asio::steady_timer> waiting_;  // in next_change()
};

}  // namespace portway
