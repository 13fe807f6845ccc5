// An Io over a SimNetwork: no kernel, virtual time, seeded faults, and a strict account of descriptors.
//
// What the contract of Io forbids (closing a descriptor that is armed, closing it twice, using it
// afterwards, arming it twice) aborts with a message, as does destroying the Io while a descriptor is
// open. What the contract allows happens often, if requested: see SimFaults. Time passes in wait(): to the
// next event, or by a microsecond if there is one already. wake() may be called from any thread,
// everything else from one.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proxy/io.h"
#include "tests/sim/sim_network.h"

namespace portway::test {

/// How often, from 0 to 1, the simulator uses the kernel's freedom. Linux may do all of this; none of it
/// loses an edge.
struct SimFaults {
  double partial_read = 0;  // recv(2) returns a part, and poll reports the rest later; splice(2) takes a part
  double partial_write = 0;   // a part is taken; poll reports when there is room again
  double spurious_again = 0;  // -EAGAIN, and poll reports soon afterwards
  double delayed_event = 0;   // a completion comes up to a millisecond late
  double early_end = 0;       // a multishot operation ends although nothing is wrong
  double spurious_event = 0;  // poll repeats an earlier report
  double bare_event = 0;  // poll reports only the waker's mask, as io_uring does: POLLPRI with every arrival
  double no_pages = 0;    // a pipe takes nothing, or less than it has room for, without an event

  /// Everything at once.
  static SimFaults all() { return {0.2, 0.2, 0.1, 0.2, 0.05, 0.05, 0.5, 0.1}; }
};

class SimIo : public Io {
 public:
  /// The calls that fail() supports. A poll fails by its completion.
  enum class Call : std::uint8_t {
    kAccept,
    kPoll,
    kSocket,
    kConnect,
    kBindToDevice,
    kBindTransparent,
    kListenAgain,
    kRecv,
    kSend,
    kSplice,
    kPipe,
    kWrite,
  };
  static constexpr std::size_t kCalls = 12;
  static constexpr std::uint32_t kRttUs = 321;  // what every socket reports

  explicit SimIo(SimNetwork& network) : network_(network) {}
  ~SimIo() override;

  // --- For tests.

  /// A listening descriptor, as the control plane would hand it over.
  int listen(const Endpoint& endpoint);
  void set_faults(const SimFaults& faults) { faults_ = faults; }
  /// The `nth` call of this kind from now on, the first being 1, fails with `error`, as do the `times` - 1
  /// after it.
  void fail(Call call, std::uint64_t nth, int error, std::uint64_t times = 1);
  /// The next read of peeked bytes fails with `error`.
  void fail_taking_out(int error) { taking_out_error_ = error; }
  /// Every socket reports unanswered probes from this moment on.
  void set_silent_since(Nanos moment) { silent_since_ = moment; }
  /// How often unacknowledged() was called.
  std::uint64_t asked_unacknowledged() const { return asked_unacknowledged_; }
  /// True if fail() has had its effect, at least once.
  bool failed(Call call) const { return planned(call).hit; }
  /// At most this many descriptors: -EMFILE beyond.
  void set_descriptors_max(std::size_t max) { descriptors_max_ = max; }
  /// Pipes get no more slots (pages) than this: 16 is the kernel's default, 2 what it leaves beyond a user's
  /// limit.
  void set_pipe_slots_max(std::size_t slots) { pipe_slots_max_ = slots; }

  /// Unix sockets lead to this service. Its backlog has room for so many more connections.
  void serve_unix(const Endpoint& service) { unix_service_ = service; }
  void set_backlog_room(std::size_t room) { backlog_room_ = room; }
  /// How often one was connected, or tried to.
  std::uint64_t unix_connects() const { return unix_connects_; }

  /// The kernel's choice of ports for outgoing connections; not known without it.
  void set_local_ports(std::vector<PortRange> ranges) { local_ports_ = std::move(ranges); }

  std::size_t open_sockets() const { return count(Kind::kSocket) + count(Kind::kListener); }
  std::size_t open_pipe_ends() const { return count(Kind::kPipeReader) + count(Kind::kPipeWriter); }
  /// What SO_RCVBUF was set to last, of all sockets; 0: never.
  int last_receive_buffer() const { return last_receive_buffer_; }
  /// Bytes in pipes.
  std::size_t piped_bytes() const;
  /// How often wait() was called, and how often it had nothing to report.
  std::uint64_t waits() const { return waits_; }

  // --- Io.

  std::string_view name() const override { return "sim"; }
  Nanos now() const override { return network_.now(); }
  void poll(Token token, int fd) override;
  void cancel(Token token, int fd) override;
  std::span<const Completion> wait(Nanos timeout) override;
  void wake() override { woken_ = true; }

  int accept(int listener) override;
  int socket(int family, const NetworkNamespace::Ptr& netns) override;
  void set_stays_in_namespaces(bool) override {}
  int connect(int fd, const Endpoint& to) override;
  int connect(int fd, const SocketTarget& to) override;
  int socket_error(int fd) override;
  std::unique_ptr<PortProbe> probe(const SynProbeTarget& target, int& error) override;
  int set_option(int fd, int level, int option, int value) override;
  int bind_to_device(int fd, int device) override;
  int bind_transparent(int fd, const Endpoint& source) override;
  int take_client(int fd, Client& out) override;
  int local_endpoint(int fd, Endpoint& out) override;
  int remote_endpoint(int fd, Endpoint& out) override;
  std::vector<PortRange> local_ports() override { return local_ports_; }
  int listen_again(int fd) override;
  int unacknowledged(int fd) override;
  int unread(int fd) override;
  TcpSummary tcp_summary(int fd) override;
  void find_urgent(std::span<pollfd> sockets) override;
  bool at_urgent_mark(int fd) override;
  std::ptrdiff_t recv(int fd, void* buffer, std::size_t size, int flags) override;
  std::ptrdiff_t send(int fd, const void* data, std::size_t size, int flags) override;
  std::ptrdiff_t splice(int from, int to, std::size_t size) override;
  std::ptrdiff_t write(int fd, const void* data, std::size_t size) override;
  int pipe(int (&fds)[2], std::size_t size) override;
  int shutdown(int fd, int how) override;
  void close(int fd) override;
  void close_with_reset(int fd) override;
  int set_reset_at_end(int fd, bool reset) override;
  void close_time_wait(int fd, const Endpoint&, int, const NetworkNamespace::Ptr&) override { close(fd); }

 private:
  enum class Kind : std::uint8_t { kSocket, kListener, kPipeReader, kPipeWriter };

  class Probe;

  /// A pipe is full if its slots are, however little is in them.
  struct Pipe {
    std::deque<std::string> slots;
    std::size_t slots_max;
  };

  struct Descriptor {
    Kind kind;
    SimSocket* socket = nullptr;
    SimListener* listener = nullptr;
    Endpoint endpoint{};  // a listener's
    std::shared_ptr<Pipe> pipe = nullptr;
    std::uint64_t seen =
        0;  // a socket's bytes that a peek has shown and no read has taken: they cannot be withheld

    bool armed = false;
    bool cancelled = false;
    Token token = 0;
    short poll_mask() const;
    int arming_error = 0;  // poll()'s error
    bool woken = false;    // poll has something to report
    bool reset_at_end = false;
    short bits = 0;   // the wakers' masks, if all of them gave one
    Nanos told_at{};  // when it may be reported
  };

  struct PlannedFailure {
    std::uint64_t first = 0;  // the number of the call; 0: none
    std::uint64_t last = 0;
    int error = 0;
    bool hit = false;
    std::uint64_t calls = 0;
  };

  static std::size_t index(Call call) { return static_cast<std::size_t>(call); }
  const PlannedFailure& planned(Call call) const { return planned_[index(call)]; }
  int failure(Call call);
  bool chance(double probability);
  std::size_t part_of(std::size_t size);
  Nanos soon();

  std::size_t count(Kind kind) const;
  bool full(std::size_t more = 1) const { return descriptors_.size() + more > descriptors_max_; }
  int add(Descriptor descriptor);
  Descriptor& get(int fd);
  SimSocket& socket_of(int fd);
  Descriptor remove(int fd);

  void on_wake(int fd, short bits);
  Nanos next_telling() const;
  void collect();
  void collect_poll(Descriptor& descriptor);
  void complete(Descriptor& descriptor, std::int32_t result, bool more);

  bool take_part(SimSocket& socket, std::size_t& size);
  std::ptrdiff_t splice_in(Descriptor& from, Pipe& pipe, std::size_t size);
  std::ptrdiff_t splice_out(Pipe& pipe, SimSocket& to, std::size_t size);

  SimNetwork& network_;
  SimFaults faults_;
  std::array<PlannedFailure, kCalls> planned_;
  int taking_out_error_ = 0;
  std::optional<Nanos> silent_since_;
  std::uint64_t asked_unacknowledged_ = 0;
  std::size_t descriptors_max_ = SIZE_MAX;
  std::size_t pipe_slots_max_ = SIZE_MAX;
  std::vector<PortRange> local_ports_;
  std::optional<Endpoint> unix_service_;
  std::size_t backlog_room_ = SIZE_MAX;
  std::uint64_t unix_connects_ = 0;
  int last_receive_buffer_ = 0;
  // No number is used twice, and none is one of the kernel's: a stale one is detected, and a close(2) of
  // one does no harm.
  int next_fd_ = 1 << 20;
  std::map<int, Descriptor> descriptors_;
  std::vector<Completion> completions_;
  std::uint64_t waits_ = 0;
  std::atomic<bool> woken_ = false;
};

}  // namespace portway::test
