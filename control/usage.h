// What each instance and each forward has carried since it exists, over restarts of the daemon: for bills,
// and for those who look for idle machines.
//
// The data plane counts (proxy/usage_meter.h). This room gives each instance and each forward its meter, and
// saves what the meters say, so that the next process can go on from there: kSaveEvery, and at the end. A
// part of those that have changed is one transaction of the store's thread; nobody waits for it. An
// instance's meter counts what all its forwards carry, those that are gone included, and its next sessions go
// on with it. It goes with the instance.
//
// What is lost: nothing at a restart, an upgrade or SIGKILL (a successor reads the meters' memory), apart
// from the bytes that a worker was moving in that instant. If the keeper dies with the daemon, the machine
// crashes, or connections end with the process (proxy.handover_timeout_s = 0), what came after the last save.
//
// Belongs to the control thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/forward.h"
#include "control/store.h"
#include "proxy/usage_meter.h"

namespace portway {

struct UsageStatus {
  Timestamp since{};  // when counting began
  UsageReading reading = {};
};

class Usage {
 public:
  static constexpr std::chrono::seconds kSaveEvery{10};
  static constexpr std::size_t kPart = 1000;  // of the instances and forwards, in one go

  /// All must outlive it.
  Usage(boost::asio::io_context& context, Store& store, UsageMeters& meters,
        std::function<std::chrono::steady_clock::time_point()> clock = std::chrono::steady_clock::now)
      : context_(context), store_(store), meters_(meters), clock_(std::move(clock)) {}

  /// What the store has of instances and forwards, with all those that there are. Before meter_of().
  void restore(std::vector<StoredUsage> stored, std::span<const Instance> instances,
               std::span<const Forward> forwards);

  /// For the data plane, which may count with it for longer than this room knows it.
  UsageMeterPtr meter_of(const Instance& instance);
  UsageMeterPtr meter_of(const Forward& forward);
  void forget(const Instance& instance);
  void forget(const Forward& forward);

  UsageStatus of(const Instance& instance) const;
  UsageStatus of(const Forward& forward) const;

  /// Saves what has changed, every kSaveEvery. Call it every few seconds.
  void save();
  /// The same, at the end: all that has changed, in one transaction.
  void save_at_end();

 private:
  struct Entry {
    UsageMeterPtr meter;
    StoredUsage saved;  // as it is on disk; of a new one, nothing is
  };
  using Entries = std::map<std::string, Entry, std::less<>>;

  UsageMeterPtr meter_of(const std::string& key, StoredUsage fresh);
  UsageStatus of(const std::string& key, Timestamp since) const;
  std::vector<StoredUsage> changed(Entries::iterator& at, std::size_t visits) const;
  void save_part();
  void on_saved(const std::vector<StoredUsage>& saved, const Result<void>& done);

  boost::asio::io_context& context_;
  Store& store_;
  UsageMeters& meters_;
  const std::function<std::chrono::steady_clock::time_point()> clock_;
  const std::shared_ptr<void> alive_ = std::make_shared<char>();  // what is posted looks here first
  Entries entries_;                                               // by the keys of the meters
  std::string saved_to_;                                          // of the round under way
  std::chrono::steady_clock::time_point round_began_ = clock_();
  bool saving_ = false;   // a round is under way
  bool refused_ = false;  // the last time
};

}  // namespace portway
