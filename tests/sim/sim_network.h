// TCP in memory, with virtual time: connects the simulated Io and the peers of a test.
//
// It behaves like Linux as far as a relay can see: bounded buffers and windows, FIN and half-close, RST
// behind the data in flight, a pending error that is reported once, the urgent mark, edges of readiness.
// Nothing is ever lost or reordered. Time stands still until somebody advances it, and what happens then
// depends only on the seed. One thread.
#pragma once

#include <poll.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/endpoint.h"
#include "network/client_refusals.h"
#include "proxy/io.h"

namespace portway::test {

struct SimNetworkOptions {
  Nanos latency = std::chrono::microseconds(50);  // one way
  Nanos jitter = Nanos::zero();                   // up to this much more, for each thing on the wire
  std::size_t receive_buffer = 128 * 1024;        // bytes a socket holds unread
  std::size_t send_buffer = 128 * 1024;           // bytes a socket holds unacknowledged
  std::size_t segment = 16 * 1024;                // the most one arrival carries
  std::uint64_t seed = 1;
};

class SimNetwork;
class SimListener;

/// One end of a connection. Calls return -errno, as Io's do.
class SimSocket {
 public:
  SimSocket(SimNetwork& network, std::uint64_t serial);
  SimSocket(const SimSocket&) = delete;
  SimSocket& operator=(const SimSocket&) = delete;

  int connect(const Endpoint& to);
  std::ptrdiff_t send(std::string_view data, int flags);
  /// MSG_PEEK and MSG_OOB are understood.
  std::ptrdiff_t recv(std::span<char> out, int flags);
  /// Reads as splice(2) does: hands at most `size` bytes to `take`, a segment at a time, until that takes
  /// less than it was given. Never crosses the urgent mark: there it returns -EAGAIN whatever lies behind.
  std::ptrdiff_t splice_out(std::size_t size, const std::function<std::size_t(std::string_view)>& take);
  int shutdown(int how);
  void close();
  void close_with_reset();
  /// Its TCP gives up with this error; the peer is not notified.
  void give_up(int error) {
    die(error);
    wake(0);
  }
  SimSocket* peer() { return peer_; }

  int take_error();
  int unacknowledged() const { return static_cast<int>(unacked_); }
  bool urgent_waits() const { return urgent_ == Urgent::kUnread; }
  bool at_urgent_mark() const { return urgent_ != Urgent::kNone && urgent_at_ == read_; }
  /// The poll(2) bits of the present.
  short poll_mask();

  /// What arrived and was not read.
  std::size_t readable_bytes() const { return received_bytes_; }
  /// Those in front of the urgent mark (SIOCINQ).
  std::size_t bytes_to_mark() const;
  /// FIN or RST has arrived, and with it everything the peer sent.
  bool complete() const { return fin_received_ || dead_; }
  bool connected() const { return connected_; }
  /// Connected, and not reset since.
  bool sound() const { return connected_ && !dead_; }
  const Endpoint& remote() const { return remote_; }
  /// Of an accepted one: where its peer connected to.
  const Endpoint& local() const { return local_; }
  std::uint64_t serial() const { return serial_; }

  void set_receive_buffer(std::size_t bytes) { receive_buffer_ = bytes; }
  void set_send_buffer(std::size_t bytes) { send_buffer_ = bytes; }
  /// SO_OOBINLINE: urgent bytes are read in line.
  void set_urgent_inline(bool on) { urgent_inline_ = on; }
  /// The segment of the next urgent byte is lost at the other end for want of memory there, after TCP has
  /// noted the byte, and comes again.
  void lose_urgent() { lose_urgent_ = true; }
  /// It only probes: a service that answers never sees it.
  void set_half_open() { half_open_ = true; }
  /// The address to connect from; the network's choice without it.
  void set_source(const Endpoint& source) { source_ = source; }
  /// Called with the bits that changed at each edge of readiness, 0 meaning "anything may have".
  void set_wake(std::function<void(short)> wake) { wake_ = std::move(wake); }
  /// Pretends that readiness of `bits` comes only `delay` from now.
  void wake_later(short bits, Nanos delay);

 private:
  friend class SimNetwork;
  friend class SimListener;

  enum class Urgent : std::uint8_t { kNone, kUnread, kRead };
  struct Segment {
    std::string data;
    std::size_t offset = 0;
    bool urgent = false;  // its last byte is

    std::size_t size() const { return data.size() - offset; }
    std::string_view view() const { return std::string_view(data).substr(offset); }
  };

  std::size_t send_room() const { return send_buffer_ > unacked_ ? send_buffer_ - unacked_ : 0; }
  bool writable() const { return send_room() * 3 >= send_buffer_; }
  std::ptrdiff_t nothing_to_read();
  void consume(std::size_t bytes);
  std::ptrdiff_t recv_urgent(std::span<char> out, int flags);
  void transmit();
  std::size_t window() const;
  void put_on_wire(std::function<void()> arrival);
  void abort_connection();
  void die(int error);
  void wake(short bits) {
    if (wake_) wake_(bits);
  }

  void on_segment(const Segment& segment);
  void on_urgent(char byte, std::uint64_t at);
  void on_fin();
  void on_reset();
  void on_connected();
  void on_refused(int error);
  void on_acknowledged(std::size_t bytes);

  SimNetwork& network_;
  const std::uint64_t serial_;
  SimSocket* peer_ = nullptr;
  Endpoint remote_;
  Endpoint local_;
  std::optional<Endpoint> source_;
  bool half_open_ = false;
  std::function<void(short)> wake_;
  bool connecting_ = false;
  bool connected_ = false;
  bool closed_ = false;  // nobody holds it any more; what was sent is still delivered
  bool dead_ = false;    // reset or aborted
  int error_ = 0;        // SO_ERROR

  std::size_t receive_buffer_;
  std::deque<Segment> received_;
  std::size_t received_bytes_ = 0;
  std::uint64_t arrived_ = 0;  // bytes ever
  std::uint64_t read_ = 0;     // bytes ever
  bool fin_received_ = false;
  bool shut_read_ = false;
  Urgent urgent_ = Urgent::kNone;
  std::uint64_t urgent_at_ = 0;
  char urgent_byte_ = 0;
  bool urgent_inline_ = false;
  bool lose_urgent_ = false;

  std::size_t send_buffer_;
  std::deque<Segment> unsent_;
  std::size_t in_flight_ = 0;  // bytes on the wire
  std::size_t unacked_ = 0;    // unsent, on the wire, or not yet acknowledged; FIN counts one
  bool shut_write_ = false;
  bool fin_sent_ = false;
  bool fin_acked_ = false;
  bool no_space_ = false;  // a sender has to wait
  Nanos last_arrival_ = Nanos::zero();
};

/// Single clients of a listener that are refused.
class SimRefusals final : public ClientRefusals {
 public:
  explicit SimRefusals(const SimNetwork& network) : network_(network) {}

  bool refuse(const Endpoint& local, const IpAddress& client) override {
    if (refused_.size() >= room) return false;
    refused_[{local, client}] = {};
    return true;
  }
  void allow(const Endpoint& local, const IpAddress& client) override { refused_.erase({local, client}); }
  Nanos last_asked(const Endpoint& local, const IpAddress& client) override {
    const auto found = refused_.find({local, client});
    return found == refused_.end() ? Nanos::zero() : found->second;
  }

  /// A SYN has come.
  bool asks(const Endpoint& local, const IpAddress& client);
  std::size_t size() const { return refused_.size(); }

  std::size_t room = SIZE_MAX;

 private:
  const SimNetwork& network_;
  std::map<std::pair<Endpoint, IpAddress>, Nanos> refused_;
};

class SimListener {
 public:
  /// The next established connection; null if there is none.
  SimSocket* accept();
  bool shut() const { return shut_; }
  bool pending() const { return !backlog_.empty(); }
  short poll_mask() const { return static_cast<short>(shut_ ? POLLHUP : pending() ? POLLIN : 0); }
  /// Called when a client has arrived, and at shut_down().
  void set_wake(std::function<void(short)> wake) { wake_ = std::move(wake); }
  /// No more connections: those that wait are reset.
  void shut_down();
  void open_again() { shut_ = false; }

 private:
  friend class SimNetwork;

  std::deque<SimSocket*> backlog_;
  std::function<void(short)> wake_;
  bool shut_ = false;
};

class SimNetwork {
 public:
  /// What becomes of a connect(2): an errno, or one of these.
  static constexpr int kAnswer = 0;  // accepted if somebody listens, else refused
  static constexpr int kSilent = -1;
  static constexpr int kSilentToOthers = -2;  // accepted, unless it comes from a certain address (set_source)

  explicit SimNetwork(const SimNetworkOptions& options = {}) : options_(options), random_(options.seed) {}
  SimNetwork(const SimNetwork&) = delete;
  SimNetwork& operator=(const SimNetwork&) = delete;

  Nanos now() const { return now_; }
  /// The time of the next event; Nanos::max() if there is none.
  Nanos next_event() const { return events_.empty() ? Nanos::max() : events_.top().time; }
  /// Lets everything up to `time` happen.
  void advance_to(Nanos time);

  SimSocket& socket();
  /// A listening end. `endpoint` must be free.
  SimListener& listen(const Endpoint& endpoint);
  void unlisten(const Endpoint& endpoint);
  void set_answer(const Endpoint& endpoint, int answer) { answers_[endpoint] = answer; }
  /// For one client, whatever the others get.
  void set_answer_to(const Endpoint& endpoint, const IpAddress& client, int answer) {
    answers_to_[{endpoint, client}] = answer;
  }
  SimRefusals& refusals() { return refusals_; }

  std::mt19937_64& random() { return random_; }
  const SimNetworkOptions& options() const { return options_; }

 private:
  friend class SimSocket;

  struct Event {
    Nanos time;
    std::uint64_t serial;
    std::function<void()> action;

    bool operator<(const Event& event) const {  // the earliest is the "largest"
      return time != event.time ? time > event.time : serial > event.serial;
    }
  };

  void at(Nanos time, std::function<void()> action);
  void on_syn(SimSocket& client);

  const SimNetworkOptions options_;
  std::mt19937_64 random_;
  Nanos now_ = std::chrono::seconds(1000);
  std::priority_queue<Event> events_;
  std::uint64_t event_serial_ = 0;
  std::vector<std::unique_ptr<SimSocket>> sockets_;
  std::map<Endpoint, std::unique_ptr<SimListener>> listeners_;
  std::vector<std::unique_ptr<SimListener>> old_listeners_;
  std::map<Endpoint, int> answers_;
  std::map<std::pair<Endpoint, IpAddress>, int> answers_to_;
  SimRefusals refusals_{*this};
};

}  // namespace portway::test
