// Tells a sink what etcd has below some keys: reads all of them, and then follows them by a watch.
//
// While etcd cannot be reached the sink hears nothing, and stats().stale is true. What was missed is read
// afterwards; if it is not kept any more, or etcd has gone back (it was restored from a backup), all keys are
// read again. A listing is told in one turn of the executor for each page.
//
// One thread only.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/forward.h"
#include "fleet/etcd.h"
#include "fleet/etcd_values.h"

namespace portway {

/// What an EtcdMirror tells. The sink must not destroy the mirror meanwhile.
class EtcdSink {
 public:
  virtual ~EtcdSink() = default;

  /// A listing begins, perhaps another time before the last one has ended: what it does not put until
  /// end_listing() is no more.
  virtual void begin_listing() = 0;
  /// `revision`: of etcd, as everything was listed.
  virtual void end_listing(std::int64_t revision) = 0;
  /// Of a listing, or a change. `kv.mod_revision` is that of the change.
  virtual void put(const EtcdKeyValue& kv) = 0;
  virtual void erase(const std::string& key, std::int64_t revision) = 0;
  /// After the put() or erase() of a change; not of a listing.
  virtual void on_event(const EtcdEvent& /*event*/) {}
};

struct EtcdMirrorOptions {
  EtcdKeys keys;
  /// Whether etcd is still there is asked for this often.
  std::chrono::milliseconds check_period = std::chrono::seconds(5);
};

struct EtcdMirrorStats {
  bool warm = false;          // all keys were read once
  bool stale = true;          // etcd could not be reached when it was asked last, or is being read
  std::string error = {};     // why it is stale; empty: it is not, or etcd is being read
  Timestamp true_at{};        // until when the sink is known to be as etcd was
  std::int64_t revision = 0;  // of etcd, that the sink is at
  std::uint64_t listings = 0;
  std::uint64_t events = 0;
};

class EtcdMirror {
 public:
  /// `sink` outlives it. It begins in a turn of its own.
  EtcdMirror(const boost::asio::any_io_executor& executor, std::shared_ptr<Etcd> etcd,
             EtcdMirrorOptions options, EtcdSink& sink);
  /// The sink hears nothing more.
  ~EtcdMirror();
  EtcdMirror(const EtcdMirror&) = delete;
  EtcdMirror& operator=(const EtcdMirror&) = delete;

  EtcdMirrorStats stats() const;
  /// Until the sink is at this revision, which one of its keys has or had; false: not within `most`, or the
  /// mirror was destroyed.
  boost::asio::awaitable<bool> wait_until_at(std::int64_t revision, std::chrono::milliseconds most);

 private:
  class State;

  const std::shared_ptr<State> state_;  // shared with its coroutines
};

}  // namespace portway
