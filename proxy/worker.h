// A worker: one thread with its own ring, its own listeners and its own connections.
//
// A listener belongs to one worker, which accepts a few of its clients in a turn, opens their connections
// to the guest in that order, and hands each to the least loaded worker. Everything else stays on its
// thread. Other threads send messages to the mailbox, and may read the counters.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <variant>
#include <vector>

#include "base/fd.h"
#include "proxy/busy_poll.h"
#include "proxy/connections.h"
#include "proxy/dataplane.h"
#include "proxy/fair_share.h"
#include "proxy/io.h"
#include "proxy/listeners.h"
#include "proxy/refusal_gates.h"
#include "proxy/served_forward.h"
#include "proxy/stats.h"

namespace portway {

struct WorkerOptions {
  std::size_t index = 0;  // into the forwards' counters
  std::uint32_t pipes_max = 16384;
  const FairShare* share = nullptr;  // null: first come, first served
  ConnectionOptions connections;
};

class Worker {
 public:
  struct OpenForward {
    ServedForwardPtr forward;
    std::vector<Fd> listeners;
  };
  /// The forward's phase has advanced.
  struct CloseForward {
    ServedForwardPtr forward;
  };
  /// Asks for live connections; see Dataplane::connections().
  struct ListConnections {
    ServedForwardPtr forward;
    ConnectionId after;
    std::size_t limit;
    std::promise<std::vector<LiveConnection>> answer;
  };
  struct EndConnections {
    ServedForwardPtr forward;
    ConnectionId connection;  // 0: all
    std::promise<std::size_t> answer;
  };
  /// Another worker accepted it.
  struct TakeConnection {
    OpenedConnection opened;
  };
  /// The control thread, or a predecessor, accepted it, for the worker that has the forward's listeners.
  struct TakeClient {
    ServedForwardPtr forward;
    int downstream;
    int upstream = -1;  // which the predecessor has connected to the guest
  };
  /// The forward has other limits, or its session another owner: its connections count, and get new
  /// deadlines.
  struct LimitsChanged {
    ServedForwardPtr forward;
  };
  /// The forward's guest() has changed.
  struct GuestChanged {
    ServedForwardPtr forward;
    std::shared_ptr<const GuestEndpoints> before;  // ServedForward::replace_guest()
  };
  /// The forward's session has another device, or none.
  struct DeviceChanged {
    ServedForwardPtr forward;
  };
  /// A guest refused a connection of a forward that this worker listens for.
  struct Refused {
    Refusal refusal;
    bool adopted = false;  // a predecessor has been refusing them
  };
  /// The forward's connections of a predecessor continue.
  struct AdoptConnections {
    ServedForwardPtr forward;
  };
  /// All forwards are known: resets those that belong to none.
  struct EndAdoption {
    std::promise<std::size_t> answer;  // how many
  };
  /// The thread waits between two turns until `resumed` is set.
  struct Pause {
    std::promise<bool> answer;  // it waits now
    std::shared_future<void> resumed;
  };
  /// See ping().
  struct Ping {};
  struct Stop {};
  using Message = std::variant<OpenForward, CloseForward, TakeConnection, TakeClient, ListConnections,
                               EndConnections, LimitsChanged, GuestChanged, DeviceChanged, Refused,
                               AdoptConnections, EndAdoption, Pause, Ping, Stop>;

  Worker(std::unique_ptr<Io> io, const WorkerOptions& options, const ArenaTable& memory);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// All workers, including this one; connections go to the least loaded. Call it before the first turn.
  void set_peers(std::span<const std::unique_ptr<Worker>> peers) { peers_ = peers; }

  /// See Connections::put(). Before the first turn.
  bool put(const ConnectionSlot& slot) { return connections_.put(slot); }

  // --- From any thread.

  void post(Message message);
  const WorkerCounters& counters() const { return counters_; }
  /// Connections that it has or is about to get.
  std::uint64_t load() const {
    return counters_.connections_active.get() + handed_over_.load(std::memory_order_relaxed);
  }
  std::uint64_t connections_max() const { return connections_max_; }

  // --- From the control thread.

  /// Whether its thread has taken a turn since the call before; the first call returns true.
  bool ping();
  /// Calls take(CloseRecord&&) for each connection that has ended since the last call.
  template <class Take>
  void drain_closes(Take take) {
    closes_.drain(take);
  }

  // --- From the worker's thread.

  /// Takes turns until Stop was handled and the last connection and listener have ended.
  void run();
  /// Waits for something to happen, at most `max_wait` (negative: for ever), and deals with it.
  void turn(Nanos max_wait);
  bool stopped() const {
    return stopping_ && connections_.in_use() == 0 && listeners_.empty() && gates_.empty();
  }

 private:
  void accept();
  std::span<const Completion> wait(Nanos max_wait);
  bool latency_bound();
  Nanos wait_time(Nanos max_wait) const;
  void read_mailbox();
  void on(OpenForward& message);
  void on(CloseForward& message);
  void on(TakeConnection& message);
  void on(TakeClient& message);
  void on(ListConnections& message);
  void on(EndConnections& message);
  void on(LimitsChanged& message);
  void on(GuestChanged& message);
  void on(DeviceChanged& message);
  void on(Refused& message);
  void on(AdoptConnections& message);
  void on(EndAdoption& message);
  void on(Pause& message);
  void on(Ping& message);
  void on(Stop& message);

  /// As Connections::open().
  void on_accepted(int downstream, const ServedForwardPtr& forward, int& upstream);
  std::uint64_t total_load() const;
  bool has_share(int downstream, const ServedForwardPtr& forward);
  Worker& least_loaded();
  Worker& backlog_worker(const BacklogQueue::Place& place);
  Worker& listening_worker(const ServedForward& forward);
  void on_refused(const Refusal& refusal);

  std::unique_ptr<Io> io_;
  const std::uint64_t connections_max_;
  const FairShare* const share_;
  const Nanos half_close_timeout_;
  const std::size_t worker_;  // index into the forwards' counters
  WorkerCounters counters_;
  CloseRecordRing closes_;  // written by the worker's thread, read by the control thread
  Listeners listeners_;
  Connections connections_;
  RefusalGates gates_;
  BusyPoll busy_poll_;
  std::size_t events_before_ = 0;  // in the last turn
  std::uint64_t spliced_before_ = 0;
  std::span<const std::unique_ptr<Worker>> peers_;

  bool stopping_ = false;

  std::mutex mailbox_mutex_;
  std::vector<Message> mailbox_;               // under mailbox_mutex_
  std::vector<Message> reading_;               // taken from the mailbox
  std::size_t read_ = 0;                       // how many of them are handled
  std::atomic<bool> mail_{false};              // mailbox_ may hold something, and wake() was called
  std::atomic<bool> pinged_{false};            // and has not answered yet
  std::atomic<std::uint64_t> handed_over_{0};  // TakeConnection and TakeClient messages in mailbox_
};

}  // namespace portway
