// A relay is killed at each of its system calls, one after another: before it, and after it has returned.
// What is found then continues the stream with every byte once and in order. Real sockets and pipes.
#include "proxy/in_flight.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "network/tcp_progress.h"
#include "proxy/kernel_io.h"
#include "proxy/relay.h"
#include "proxy/slot_arena.h"

namespace portway {
namespace {

/// The calls of a relay, of which the one with number `last` is the last: it is not made, or does not return.
class MortalIo final : public KernelIo {
 public:
  explicit MortalIo(int last, bool pipes_take_all = true) : left_(last), pipes_take_all_(pipes_take_all) {}

  std::ptrdiff_t recv(int fd, void* buffer, std::size_t size, int flags) override {
    return call([&] { return KernelIo::recv(fd, buffer, size, flags); });
  }
  std::ptrdiff_t send(int fd, const void* data, std::size_t size, int flags) override {
    return call([&] { return KernelIo::send(fd, data, size, flags); });
  }
  std::ptrdiff_t splice(int from, int to, std::size_t size) override {
    return call([&] { return KernelIo::splice(from, to, size); });
  }
  std::ptrdiff_t write(int fd, const void* data, std::size_t size) override {
    return call([&] {
      return KernelIo::write(fd, data, pipes_take_all_ ? size : std::min<std::size_t>(size, 5000));
    });
  }
  int pipe(int (&fds)[2], std::size_t size) override {
    return call([&] { return KernelIo::pipe(fds, size); });
  }

  std::string_view name() const override { return "mortal"; }
  void poll(Token, int) override {}
  void cancel(Token, int) override {}
  std::span<const Completion> wait(Nanos) override { return {}; }
  void wake() override {}

 private:
  template <class Call>
  std::invoke_result_t<Call> call(Call call) {
    if (left_-- == 0) ::raise(SIGKILL);
    const auto result = call();
    if (left_-- == 0) ::raise(SIGKILL);
    return result;
  }

  int left_;
  const bool pipes_take_all_;
};

struct Ends {
  Fd node;
  Fd peer;
};

/// A TCP connection; the node is its opener or its taker. `buffer`: of the opener's sends, and of what the
/// taker receives; 0: the kernel's default.
Ends connect(bool node_opens, int buffer) {
  const Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{
      .sin_family = AF_INET, .sin_port = 0, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (buffer != 0) ::setsockopt(listener.get(), SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
  EXPECT_EQ(::bind(listener.get(), generic, size), 0);
  EXPECT_EQ(::listen(listener.get(), 1), 0);
  EXPECT_EQ(::getsockname(listener.get(), generic, &size), 0);
  Fd opener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (buffer != 0) ::setsockopt(opener.get(), SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
  EXPECT_EQ(::connect(opener.get(), generic, size), 0);
  Fd taker(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  Ends ends{.node = std::move(node_opens ? opener : taker), .peer = std::move(node_opens ? taker : opener)};
  for (const Fd* fd : {&ends.node, &ends.peer}) ::fcntl(fd->get(), F_SETFL, O_NONBLOCK);
  return ends;
}

struct Scenario {
  const char* name;
  std::size_t size;     // of the stream
  int sink_buffer = 0;  // of the sink's socket; 0: the kernel's default
  RelayMode mode = RelayMode::kCopy;
  std::uint32_t pipes = 4;
  bool pipes_take_all = true;
  bool ends = false;            // the source ends behind the stream
  std::set<std::string> finds;  // what there must be at one call or another
};

/// What the guest has read, wherever it did that.
struct Got {
  std::size_t size;
  std::array<char, 1 << 20> bytes;
};

class InFlightTest : public testing::TestWithParam<Scenario> {
 protected:
  void begin() {
    client_ = connect(false, 1 << 20);  // takes the whole stream
    guest_ = connect(true, GetParam().sink_buffer);
    arena_ = std::make_unique<SlotArena>(1);
    slot() = ConnectionSlot{};
    state().mode = GetParam().mode;
    slot().socket[kDownstream] = {.fd = client_.node.get(), .readable = true};
    slot().socket[kUpstream] = {.fd = guest_.node.get(), .writable = true};
    got_->size = 0;
    stream_.resize(GetParam().size);
    for (std::size_t i = 0; i < stream_.size(); ++i) stream_[i] = static_cast<char>((i * 7919) >> 5);
    ASSERT_EQ(::send(client_.peer.get(), stream_.data(), stream_.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(stream_.size()));
    if (GetParam().ends) {
      ASSERT_EQ(::shutdown(client_.peer.get(), SHUT_WR), 0);
    }
    int arrived = 0;
    for (pollfd poll{.fd = client_.node.get(), .events = POLLIN, .revents = 0};
         arrived < static_cast<int>(stream_.size()); ::ioctl(client_.node.get(), FIONREAD, &arrived))
      ASSERT_EQ(::poll(&poll, 1, 10'000), 1);
  }

  ConnectionSlot& slot() { return arena_->slots()[0]; }
  RelayState& state() { return slot().relay[kDownstream]; }
  RelayMemory& memory() { return arena_->table(0).relay; }

  /// Relays until the stream has ended or nothing more comes, and is killed at a call.
  void relay_until(int last_call) {
    MortalIo io(last_call, GetParam().pipes_take_all);
    WorkerCounters counters;
    PipePool pipes(io, GetParam().pipes, counters, memory());
    const std::atomic<std::uint32_t> held{0};
    const RelayContext context{
        .io = io, .pipes = pipes, .counters = counters, .memory = memory(), .instance_pipes = held};
    auto& [source, sink] = slot().socket;
    for (int idle = 0; idle < 3;) {
      source.readable = sink.writable = true;
      memory().in_hand = 0;
      const std::uint64_t before = state().bytes;
      const RelayStatus status = relay(context, state(), source, sink);
      memory().in_hand = RelayMemory::kNobody;
      if (status == RelayStatus::kSourceEnded || status == RelayStatus::kSinkBroken) break;
      idle = state().bytes == before ? idle + 1 : 0;
      read_as_guest();
    }
    ::_exit(0);
  }

  void read_as_guest() {
    for (;;) {
      const std::span<char> room = std::span(got_->bytes).subspan(got_->size);
      const ssize_t got = ::recv(guest_.peer.get(), room.data(), room.size(), 0);
      if (got <= 0) return;
      got_->size += static_cast<std::size_t>(got);
    }
  }

  /// In a process that shares the descriptors, as a worker and its keeper do. True if it was killed.
  bool kill_at(int call) {
    struct Call {
      InFlightTest* self;
      int last;
    } argument{.self = this, .last = call};
    std::vector<char> stack(1 << 20);
    const pid_t child = ::clone(
        [](void* raw) {
          const auto* of = static_cast<Call*>(raw);
          of->self->relay_until(of->last);
          return 0;
        },
        stack.data() + stack.size(), CLONE_FILES | SIGCHLD, &argument);
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0) << status;
    return WIFSIGNALED(status);
  }

  /// What the guest will have read in the end, if a successor does as it is told.
  void expect_whole_stream() {
    const auto source = tcp_progress(client_.node.get(), false);
    const auto sink = tcp_progress(guest_.node.get(), true);
    ASSERT_TRUE(source && sink);
    int piped = 0;
    if (state().pipe[0] >= 0) {
      ASSERT_EQ(::ioctl(state().pipe[0], FIONREAD, &piped), 0);
    }
    const auto found = in_flight(
        {.read = source->read, .written = sink->written, .piped = static_cast<std::uint32_t>(piped)}, state(),
        memory(), memory().in_hand == 0);
    ASSERT_TRUE(found) << "read " << source->read << ", written " << sink->written << ", piped " << piped;
    if (found->sent_before != 0) found_.insert("sent before");
    if (found->pipe_bytes != 0) found_.insert("pipe");
    if (!found->rest.empty()) found_.insert(found->rest.data() < memory().spare.data() ? "buffer" : "spare");
    ::shutdown(guest_.node.get(), SHUT_WR);
    for (pollfd poll{.fd = guest_.peer.get(), .events = POLLIN | POLLRDHUP, .revents = 0};
         (poll.revents & POLLRDHUP) == 0; read_as_guest())
      ASSERT_EQ(::poll(&poll, 1, 10'000), 1);
    std::string all(got_->bytes.data(), got_->size);
    EXPECT_EQ(all.size(), found->bytes);
    std::string pipe(found->pipe_bytes, '-');
    if (!pipe.empty()) {
      ASSERT_EQ(::read(state().pipe[0], pipe.data(), pipe.size()), static_cast<ssize_t>(pipe.size()));
    }
    all += pipe;
    for (const std::byte each : found->rest) all.push_back(static_cast<char>(each));
    std::string unread(stream_.size() + 1, '-');
    const ssize_t got = ::recv(client_.node.get(), unread.data(), unread.size(), 0);
    unread.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
    ASSERT_LE(found->sent_before, unread.size());
    all += unread.substr(static_cast<std::size_t>(found->sent_before));
    EXPECT_EQ(all.size(), stream_.size());
    EXPECT_TRUE(all == stream_) << "the bytes are others, or in another order";
  }

  Ends client_;
  Ends guest_;
  std::unique_ptr<SlotArena> arena_;
  std::string stream_;
  std::set<std::string> found_;
  Got* const got_ = static_cast<Got*>(
      ::mmap(nullptr, sizeof(Got), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
};

TEST_P(InFlightTest, IsKnownAtEveryCall) {
  int call = 0;
  for (bool killed = true; killed && !HasFatalFailure(); ++call) {
    SCOPED_TRACE(testing::Message() << "killed at " << call);
    begin();
    std::vector<int> before;
    for (int fd = 0; fd < 100; ++fd) {
      if (::fcntl(fd, F_GETFD) >= 0) before.push_back(fd);
    }
    killed = kill_at(call);
    expect_whole_stream();
    for (int fd = 0; fd < 100; ++fd) {  // pipes
      if (::fcntl(fd, F_GETFD) >= 0 && !std::ranges::binary_search(before, fd)) ::close(fd);
    }
  }
  EXPECT_TRUE(std::ranges::includes(found_, GetParam().finds)) << testing::PrintToString(found_);
}

INSTANTIATE_TEST_SUITE_P(
    Relays, InFlightTest,
    testing::Values(
        Scenario{.name = "OneMessage", .size = 1000, .finds = {"buffer"}},
        Scenario{.name = "MessageAndEnd", .size = 1000, .ends = true, .finds = {"buffer"}},
        Scenario{.name = "ManyReads", .size = 400'000, .ends = true, .finds = {"buffer"}},
        Scenario{.name = "SlowSink",
                 .size = 200'000,
                 .sink_buffer = 8192,
                 .ends = true,
                 .finds = {"buffer", "pipe"}},
        Scenario{.name = "SlowSinkWithoutPipe",
                 .size = 100'000,
                 .sink_buffer = 8192,
                 .pipes = 0,
                 .ends = true,
                 .finds = {"sent before"}},
        Scenario{.name = "PipesThatTakeLittle",
                 .size = 150'000,
                 .sink_buffer = 8192,
                 .pipes_take_all = false,
                 .ends = true,
                 .finds = {"buffer", "pipe", "sent before", "spare"}},
        Scenario{
            .name = "Spliced", .size = 400'000, .mode = RelayMode::kSplice, .ends = true, .finds = {"pipe"}},
        Scenario{.name = "SplicedToASlowSink",
                 .size = 300'000,
                 .sink_buffer = 8192,
                 .mode = RelayMode::kSplice,
                 .finds = {"pipe"}}),
    [](const auto& scenario) { return std::string(scenario.param.name); });

}  // namespace
}  // namespace portway
