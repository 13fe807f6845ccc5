// One connection: an object over its slot, from the accepted client to the last descriptor closed.
//
// kConnecting -> kRelaying -> (kResetting ->) kClosing -> kFree. An event only marks the connection and
// puts it into the run queue; advance() then does all that is due, however many events came. Teardown has
// three steps: terminate (no more bytes move, armed polls are cancelled), join (the last completions
// arrive), release (descriptors closed, record written). The slot (proxy/connection_table.h) holds what
// another process would need to continue; the object beside it holds what only this process can use.
//
// All calls on the worker's thread. connection.cpp has the life cycle, connection_relay.cpp the relaying,
// and connection_deadlines.cpp the timeouts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "proxy/backlog_queue.h"
#include "proxy/buffer_fit.h"
#include "proxy/close_record.h"
#include "proxy/connection_lists.h"
#include "proxy/connection_options.h"
#include "proxy/connection_table.h"
#include "proxy/half_closed.h"
#include "proxy/io.h"
#include "proxy/live_connection.h"
#include "proxy/pipe_pool.h"
#include "proxy/refusal_gates.h"
#include "proxy/relay.h"
#include "proxy/run_queue.h"
#include "proxy/served_forward.h"
#include "proxy/spsc_ring.h"
#include "proxy/stats.h"
#include "proxy/timer_wheel.h"
#include "proxy/upstream.h"

namespace portway {

/// An accepted client and its connection to the guest, which may still be under way.
struct OpenedConnection {
  ServedForwardPtr forward;
  int downstream = -1;
  int upstream = -1;  // -1: no socket could be opened
  int error = 0;      // the errno of an immediate failure; 0: it is under way, or made
  Endpoint client;
  Endpoint guest;
  std::uint8_t dscp = 0;  // of the client's SYN, shifted left by two; 0: none, or not copied
  SourcePlan source = SourcePlan::kPlain;
  int device = kAnyDevice;        // that the upstream socket is bound to; kNoDevice: not yet
  BacklogQueue::Place backlog{};  // it waits for room there
  bool waits_for_device = false;  // it connects once its session has one
  bool admitted = false;          // the forward's admission counts it
  ServedOwner* owner = nullptr;   // whom it counts for; null: nobody yet
  Nanos accepted_at{0};
};

using CloseRecordRing = SpscRing<CloseRecord>;

class Connection;

/// What the connections of a worker share.
struct ConnectionContext {
  ConnectionContext(Io& worker_io, const ConnectionOptions& connection_options, std::uint32_t pipes_max,
                    WorkerCounters& worker_counters, CloseRecordRing& close_records, std::size_t worker_index,
                    Token poll_token_base, RelayMemory& relay_memory, const FairShare* share)
      : io(worker_io),
        options(connection_options),
        counters(worker_counters),
        closes(close_records),
        worker(worker_index),
        token_base(poll_token_base),
        memory(relay_memory),
        pipes(io, pipes_max, counters, memory, share),
        upstream(io, options),
        timers(io.now()),
        half_closed(io, worker) {}

  void push(CloseRecord&& record) {
    record.worker = static_cast<std::uint16_t>(worker);
    if (!closes.push(std::move(record))) counters.close_records_dropped.add();
  }

  Io& io;
  const ConnectionOptions options;
  WorkerCounters& counters;
  CloseRecordRing& closes;
  const std::size_t worker;  // index into the forwards' counters
  const Token token_base;    // or'ed into the tokens of polls
  RelayMemory& memory;
  PipePool pipes;
  UpstreamOpener upstream;
  TimerWheel timers;
  RunQueue queue;
  HalfClosed half_closed;
  Nanos turn_began{0};                                       // when the queue's turn began
  std::vector<Refusal> refused;                              // by guests, since they were last taken
  std::vector<std::pair<Connection*, Side>> perhaps_urgent;  // POLLPRI was reported in this turn
};

class Connection : public RunQueue::Entry, public InForward, public InHalfClosed, public InBacklog {
 public:
  /// `index` is the slot's; it identifies the connection's timer and polls.
  Connection(ConnectionContext& context, ConnectionSlot& slot, std::uint32_t index)
      : context_(context), slot_(slot), index_(index) {}
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// The token of a side's poll, without token_base, and back.
  static Token token_of(std::uint32_t index, Side side) { return Token{index} << 1 | side; }
  static std::uint32_t index_of(Token token) { return static_cast<std::uint32_t>(token >> 1); }
  static Side side_of(Token token) { return (token & 1) != 0 ? kUpstream : kDownstream; }

  /// Takes ownership of both sockets; the slot must be free.
  void start(OpenedConnection opened);
  /// Continues a predecessor's connection, which is in the slot already: kRelaying or kResetting, and exact.
  void adopt(const ServedForwardPtr& forward);
  /// A completion of the poll of one side's socket.
  void on_poll(Side side, const Completion& completion);
  /// An urgent byte is next on this side.
  void on_urgent(Side side);
  /// Its deadline has passed.
  void expire();
  /// Does what events and deadlines made due. True: it has ended, release() it.
  [[nodiscard]] bool advance();
  /// No more bytes move. Resets both sides, unless both FINs were passed on (CloseHow::kFin).
  void terminate(const CloseCause& cause);
  /// Closes its descriptors and writes its record. Do not use the slot or this object afterwards.
  void release();
  /// The forward's admission counts it from now on; false if it already did.
  bool admit() { return !std::exchange(admitted_, true); }
  /// It counts for its session's present owner, and for no other.
  void count_for_owner();
  /// Its deadlines may have changed.
  void schedule() { context_.timers.set(index_, deadline().when); }

  bool is_live() const {
    return slot_.state != ConnectionState::kFree && slot_.state != ConnectionState::kClosing;
  }
  std::uint32_t index() const { return index_; }
  std::uint64_t serial() const { return slot_.serial; }
  ConnectionId id() const { return slot_.serial << kConnectionIdWorkerBits | context_.worker; }
  int fd(Side side) const { return slot_.socket[side].fd; }
  ServedForward& forward() const { return *forward_; }
  Endpoint client() const { return to_endpoint(slot_.client); }
  /// The client's address, or its /64.
  IpAddress source() const { return source_of(client().address()); }
  /// It goes, or is on its way, to an address that its guest no longer has.
  bool misses_guest() const;
  /// It is bound to another device than its session has now.
  bool misses_device() const { return slot_.device > 0 && slot_.device != forward_->session->device.load(); }
  /// When bytes last moved.
  Nanos active() const { return Nanos(slot_.active_ns); }
  LiveConnection live() const;

 private:
  /// What is due next, and when.
  struct Deadline {
    enum class Why : std::uint8_t {
      kNone,
      kDevice,          // check whether its session has a device
      kConnectError,    // ask for an error that no event reports; or connect again, as the first that waits
      kConnectTimeout,  // the guest has not answered
      kUnreadError,     // a reported error was not read in time
      kByteRate,        // there are bytes to spend again
      kIdle,
      kHalfClosed,
      kGuestSilence,  // check whether the guest still answers
      kDelivery,      // check whether everything was delivered before the reset
    };
    Nanos when = TimerWheel::kNever;
    Why why = Why::kNone;
  };

  ForwardConnections& siblings() const { return forward_->connections[context_.worker]; }
  ForwardCounters& forward_counters() const { return forward_->counters[context_.worker]; }
  const Config::Proxy& config() const { return context_.options.config; }
  Nanos now() const { return context_.io.now(); }
  Endpoint guest() const { return to_endpoint(slot_.guest); }
  static_assert(kNoDeadline == TimerWheel::kNever.count());
  Nanos reset_deadline() const { return Nanos(slot_.reset_deadline_ns); }
  void set_reset_deadline(Nanos when) { slot_.reset_deadline_ns = when.count(); }
  /// Upstream is a Unix socket.
  bool to_unix() const { return slot_.socket[kUpstream].is_unix; }
  bool has_ended_side() const { return slot_.relay[kDownstream].ended || slot_.relay[kUpstream].ended; }

  void enter_forward();
  void set_state(ConnectionState state);
  void arm(Side side);
  void enqueue();
  bool is_stream() const;

  void on_connecting(int error);
  void wait_for_device();
  void look_for_device();
  void advance_connecting();
  void await_backlog();
  void leave_backlog();
  bool reaches_service();
  void on_connected();
  void on_connect_failed(int error);
  void add_refusal();

  void on_events(Side side, std::uint32_t events);
  void await_error(Side side);
  void on_error_unread();

  void advance_relaying();
  void relay_from(Side from);
  void count_pipe(Side from);
  void count_moved(Side from, std::uint64_t before);
  void on_source_ended(Side from);
  void on_sink_broken(Side from);
  void fit_receive_buffer(Side side);
  void throttle(Nanos wait);

  void on_reset(Side side);
  void advance_resetting();
  void fail(Side side, int error);
  bool is_joined() const { return !armed_[kDownstream] && !armed_[kUpstream]; }
  void join();
  CloseRecord make_record() const;

  Deadline deadline() const;
  void on_deadline();
  void plan_first_look();
  void look_at_guest();
  std::uint64_t queued(Side from) const;

  ConnectionContext& context_;
  ConnectionSlot& slot_;
  const std::uint32_t index_;

  ServedForwardPtr forward_;
  Nanos throttled_until_ = TimerWheel::kNever;   // the forward's byte rate is spent until then
  Nanos look_at_ = TimerWheel::kNever;           // when to check what no event reports; the state says what
  Nanos guest_owes_since_ = TimerWheel::kNever;  // an acknowledgement, as far as the checks show
  Nanos device_due_ = TimerWheel::kNever;        // the session has no device: wait for one until then
  BufferFit receive_buffer_[2];
  BacklogQueue::Place backlog_place_;   // while it waits for room
  bool due_ = false;                    // its deadline has passed
  bool admitted_ = false;               // the forward's admission counts it
  std::array<bool, 2> pipe_counted_{};  // [from]: its instance's count of pipes has the direction's
  ServedOwner* owner_ = nullptr;        // whom it counts for; lives as long as its session
  bool requested_ = false;              // the vsock's port
  bool armed_[2] = {false, false};      // the last completion of this side's poll has not come
};

inline Connection& connection_of(RunQueue::Entry& part) {
  return static_cast<Connection&>(part);
}
inline Connection& connection_of(InForward& part) {
  return static_cast<Connection&>(part);
}
inline const Connection& connection_of(const InForward& part) {
  return static_cast<const Connection&>(part);
}
inline Connection& connection_of(InHalfClosed& part) {
  return static_cast<Connection&>(part);
}
inline Connection& connection_of(InBacklog& part) {
  return static_cast<Connection&>(part);
}

}  // namespace portway
