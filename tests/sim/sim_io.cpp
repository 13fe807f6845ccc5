#include "tests/sim/sim_io.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace portway::test {
namespace {

constexpr std::size_t kPage = 4096;

/// The most that one slot of a pipe takes from a socket: a fragment of a socket buffer.
constexpr std::size_t kFragment = 32 * 1024;

[[noreturn]] [[gnu::format(printf, 1, 2)]] void die(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fputs("SimIo: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputs("\n", stderr);
  va_end(arguments);
  std::abort();
}

}  // namespace

SimIo::~SimIo() {
  if (descriptors_.empty()) return;
  const auto& [fd, descriptor] = *descriptors_.begin();
  die("%zu descriptors are still open; the first is %d, of kind %d", descriptors_.size(), fd,
      static_cast<int>(descriptor.kind));
}

// --- For tests.

int SimIo::listen(const Endpoint& endpoint) {
  return add({.kind = Kind::kListener, .listener = &network_.listen(endpoint), .endpoint = endpoint});
}

void SimIo::fail(Call call, std::uint64_t nth, int error, std::uint64_t times) {
  planned_[index(call)] = {.first = nth, .last = nth + times - 1, .error = error};
}

std::size_t SimIo::count(Kind kind) const {
  return static_cast<std::size_t>(
      std::ranges::count_if(descriptors_, [kind](const auto& each) { return each.second.kind == kind; }));
}

std::size_t SimIo::piped_bytes() const {
  std::size_t bytes = 0;
  for (const auto& [fd, descriptor] : descriptors_) {
    if (descriptor.kind != Kind::kPipeReader) continue;
    for (const std::string& slot : descriptor.pipe->slots) bytes += slot.size();
  }
  return bytes;
}

// --- Faults.

/// The error that this call is to fail with, as -errno; 0 for none.
int SimIo::failure(Call call) {
  PlannedFailure& plan = planned_[index(call)];
  ++plan.calls;
  if (plan.calls < plan.first || plan.calls > plan.last) return 0;
  plan.hit = true;
  return -plan.error;
}

bool SimIo::chance(double probability) {
  return probability > 0 && std::uniform_real_distribution<>()(network_.random()) < probability;
}

/// Something between 1 and `size`.
std::size_t SimIo::part_of(std::size_t size) {
  return size <= 1 ? size : 1 + network_.random()() % size;
}

Nanos SimIo::soon() {
  return Nanos(1 + network_.random()() % 1'000'000);
}

// --- Descriptors.

int SimIo::add(Descriptor descriptor) {
  const int fd = next_fd_++;
  descriptors_.emplace(fd, std::move(descriptor));
  return fd;
}

SimIo::Descriptor& SimIo::get(int fd) {
  const auto found = descriptors_.find(fd);
  if (found == descriptors_.end()) {
    die("%d is %s", fd, fd >= (1 << 20) && fd < next_fd_ ? "closed" : "not a descriptor");
  }
  return found->second;
}

SimSocket& SimIo::socket_of(int fd) {
  const Descriptor& descriptor = get(fd);
  if (descriptor.kind != Kind::kSocket) die("%d is not a socket", fd);
  return *descriptor.socket;
}

SimIo::Descriptor SimIo::remove(int fd) {
  if (get(fd).armed) die("%d is closed while an operation on it is armed", fd);
  return std::move(descriptors_.extract(fd).mapped());
}

// --- Armed operations.

short SimIo::Descriptor::poll_mask() const {
  return kind == Kind::kListener ? listener->poll_mask() : socket->poll_mask();
}

void SimIo::poll(Token token, int fd) {
  Descriptor& descriptor = get(fd);
  if (descriptor.kind != Kind::kSocket && descriptor.kind != Kind::kListener) die("%d is a pipe", fd);
  if (descriptor.armed) die("%d is armed twice", fd);
  descriptor.armed = true;
  descriptor.cancelled = false;
  descriptor.token = token;
  descriptor.arming_error = failure(Call::kPoll);
  descriptor.woken = false;
  on_wake(fd, 0);
  const auto wake = [this, fd](short bits) { on_wake(fd, bits); };
  if (descriptor.kind == Kind::kListener) {
    descriptor.listener->set_wake(wake);
  } else {
    descriptor.socket->set_wake(wake);
  }
}

void SimIo::cancel(Token token, int fd) {
  if (get(fd).armed && get(fd).token != token) die("%d is armed with another token", fd);
  get(fd).cancelled = true;
}

void SimIo::on_wake(int fd, short bits) {
  Descriptor& descriptor = get(fd);
  if (!descriptor.armed) return;
  if (!descriptor.woken) {
    descriptor.told_at = now();
    if (chance(faults_.delayed_event)) descriptor.told_at += soon();
  }
  // Two wakers at once, or one without a mask: poll checks for itself.
  descriptor.bits = descriptor.woken || !chance(faults_.bare_event) ? short{0} : bits;
  descriptor.woken = true;
}

Nanos SimIo::next_telling() const {
  Nanos next = Nanos::max();
  for (const auto& [fd, descriptor] : descriptors_) {
    if (descriptor.armed && descriptor.woken) next = std::min(next, descriptor.told_at);
  }
  return next;
}

std::span<const Completion> SimIo::wait(Nanos timeout) {
  ++waits_;
  completions_.clear();
  const Nanos deadline = timeout < Nanos::zero() ? Nanos::max() : now() + timeout;
  network_.advance_to(now() + std::chrono::microseconds(1));
  for (;;) {
    collect();
    const bool woken = woken_.exchange(false);  // used up, also if there are completions
    if (!completions_.empty() || woken || now() >= deadline) break;
    const Nanos next = std::min(network_.next_event(), next_telling());
    if (next == Nanos::max() && deadline == Nanos::max()) die("wait() for ever: nothing is going to happen");
    network_.advance_to(std::min(next, deadline));
  }
  std::ranges::shuffle(completions_, network_.random());
  return completions_;
}

void SimIo::collect() {
  for (auto& [fd, descriptor] : descriptors_) {
    if (descriptor.armed) collect_poll(descriptor);
  }
}

void SimIo::complete(Descriptor& descriptor, std::int32_t result, bool more) {
  completions_.push_back({descriptor.token, result, more});
  descriptor.armed = more;
}

void SimIo::collect_poll(Descriptor& descriptor) {
  if (descriptor.arming_error != 0) {
    complete(descriptor, std::exchange(descriptor.arming_error, 0), false);
    return;
  }
  if (!descriptor.woken && chance(faults_.spurious_event)) {
    descriptor.woken = true;
    descriptor.bits = 0;
    descriptor.told_at = now();
  }
  if (descriptor.woken && descriptor.told_at <= now() && !(descriptor.cancelled && chance(0.5))) {
    descriptor.woken = false;
    const short mask = descriptor.bits != 0 ? descriptor.bits : descriptor.poll_mask();
    if (mask != 0) {
      // An event may be faster than the cancellation, and may then be the last completion.
      complete(descriptor, mask, descriptor.cancelled ? chance(0.5) : !chance(faults_.early_end));
      return;
    }
  }
  if (descriptor.cancelled) complete(descriptor, -ECANCELED, false);
}

// --- Sockets.

int SimIo::accept(int listener) {
  const Descriptor& descriptor = get(listener);
  if (descriptor.kind != Kind::kListener) die("%d is not a listener", listener);
  if (descriptor.listener->shut()) return -EINVAL;
  if (!descriptor.listener->pending()) return -EAGAIN;
  if (full()) return -EMFILE;
  if (const int error = failure(Call::kAccept); error != 0) return error;
  return add({.kind = Kind::kSocket, .socket = descriptor.listener->accept()});
}

int SimIo::socket(int, const NetworkNamespace::Ptr&) {
  if (const int error = failure(Call::kSocket); error != 0) return error;
  if (full()) return -EMFILE;
  return add({.kind = Kind::kSocket, .socket = &network_.socket()});
}

int SimIo::connect(int fd, const Endpoint& to) {
  SimSocket& socket = socket_of(fd);
  if (const int error = failure(Call::kConnect); error != 0) return error;
  return socket.connect(to);
}

/// The connection is made a moment later, as with TCP.
int SimIo::connect(int fd, const SocketTarget&) {
  ++unix_connects_;
  if (!unix_service_) return -ENOENT;
  if (backlog_room_ == 0) return -EAGAIN;
  --backlog_room_;
  const int result = connect(fd, *unix_service_);
  return result == -EINPROGRESS ? 0 : result;
}

int SimIo::socket_error(int fd) {
  return socket_of(fd).take_error();
}

class SimIo::Probe final : public PortProbe {
 public:
  Probe(SimIo& io, int fd) : io_(io), fd_(fd) {}
  ~Probe() override { io_.close(fd_); }

  int fd() const override { return fd_; }
  int answer() override {
    SimSocket& socket = io_.socket_of(fd_);
    if (!socket.complete()) return -EAGAIN;
    const int error = socket.take_error();
    if (error != 0) error_ = error;
    return error_;
  }
  bool needs_asking() const override { return false; }

 private:
  SimIo& io_;
  const int fd_;
  int error_ = 0;
};

std::unique_ptr<PortProbe> SimIo::probe(const SynProbeTarget& target, int& error) {
  const int fd = socket(0, nullptr);
  if (fd < 0) {
    error = fd;
    return nullptr;
  }
  socket_of(fd).set_half_open();
  if (target.source) socket_of(fd).set_source({*target.source, 0});
  auto made = std::make_unique<Probe>(*this, fd);
  error = connect(fd, target.guest);
  if (error != 0 && error != -EINPROGRESS) return nullptr;
  return made;
}

int SimIo::set_option(int fd, int level, int option, int value) {
  get(fd);
  if (level == SOL_SOCKET && (option == SO_RCVBUF || option == SO_RCVBUFFORCE)) last_receive_buffer_ = value;
  return 0;
}

int SimIo::bind_to_device(int fd, int) {
  get(fd);
  return failure(Call::kBindToDevice);
}

int SimIo::take_client(int fd, Client& out) {
  const SimSocket& socket = socket_of(fd);
  if (!socket.connected()) return -ENOTCONN;
  out.endpoint = socket.remote();
  return 0;
}

int SimIo::bind_transparent(int fd, const Endpoint& source) {
  SimSocket& socket = socket_of(fd);
  if (const int error = failure(Call::kBindTransparent); error != 0) return error;
  socket.set_source(source);
  return 0;
}

int SimIo::local_endpoint(int fd, Endpoint& out) {
  const Descriptor& descriptor = get(fd);
  out = descriptor.kind == Kind::kListener ? descriptor.endpoint : socket_of(fd).local();
  return 0;
}

int SimIo::remote_endpoint(int fd, Endpoint& out) {
  out = socket_of(fd).remote();
  return 0;
}

int SimIo::listen_again(int fd) {
  const Descriptor& descriptor = get(fd);
  if (descriptor.kind != Kind::kListener) die("%d is not a listener", fd);
  if (const int error = failure(Call::kListenAgain); error != 0) return error;
  descriptor.listener->open_again();
  return 0;
}

int SimIo::unacknowledged(int fd) {
  ++asked_unacknowledged_;
  return socket_of(fd).unacknowledged();
}

int SimIo::unread(int fd) {
  return static_cast<int>(socket_of(fd).bytes_to_mark());
}

TcpSummary SimIo::tcp_summary(int fd) {
  socket_of(fd);
  TcpSummary summary{.rtt_us = kRttUs};
  if (silent_since_ && now() > *silent_since_) {
    summary.unanswered = 1;
    summary.answered_ago = std::chrono::duration_cast<std::chrono::milliseconds>(now() - *silent_since_);
  }
  return summary;
}

void SimIo::find_urgent(std::span<pollfd> sockets) {
  for (pollfd& each : sockets) {
    each.revents = each.fd >= 0 && socket_of(each.fd).urgent_waits() ? POLLPRI : 0;
  }
}

bool SimIo::at_urgent_mark(int fd) {
  return socket_of(fd).at_urgent_mark();
}

std::ptrdiff_t SimIo::recv(int fd, void* buffer, std::size_t size, int flags) {
  SimSocket& socket = socket_of(fd);
  const std::span<char> out(static_cast<char*>(buffer), size);
  if ((flags & MSG_OOB) != 0) return socket.recv(out, flags);
  Descriptor& descriptor = get(fd);
  if (descriptor.seen != 0 && (flags & MSG_PEEK) == 0 && taking_out_error_ != 0)
    return -std::exchange(taking_out_error_, 0);
  // Without it, a read of peeked bytes does not fail.
  if (const int error = descriptor.seen == 0 ? failure(Call::kRecv) : 0; error != 0) return error;
  std::size_t limit = size;
  // Reports "the rest has not arrived yet" only if the caller cannot know better.
  if (!socket.complete() && socket.readable_bytes() > 0) {
    if (descriptor.seen == 0 && chance(faults_.spurious_again)) {
      socket.wake_later(POLLIN, soon());
      return -EAGAIN;
    }
    if (chance(faults_.partial_read)) {
      limit = std::max<std::size_t>(part_of(std::min(size, socket.readable_bytes())),
                                    std::min<std::size_t>(size, descriptor.seen));
      if (limit < size) socket.wake_later(POLLIN, soon());
    }
  }
  const std::ptrdiff_t got = socket.recv(out.first(limit), flags);
  const auto bytes = static_cast<std::uint64_t>(std::max<std::ptrdiff_t>(got, 0));
  if ((flags & MSG_PEEK) != 0) {
    descriptor.seen = std::max(descriptor.seen, bytes);
  } else {
    descriptor.seen -= std::min(descriptor.seen, bytes);
  }
  return got;
}

std::ptrdiff_t SimIo::send(int fd, const void* data, std::size_t size, int flags) {
  SimSocket& socket = socket_of(fd);
  if (const int error = failure(Call::kSend); error != 0) return error;
  if (socket.sound() && !take_part(socket, size)) return -EAGAIN;
  return socket.send({static_cast<const char*>(data), size}, flags);
}

/// Pretends that `socket` has room for only a part of `size` bytes, and more later; false if it has none
/// at all.
bool SimIo::take_part(SimSocket& socket, std::size_t& size) {
  const bool none = chance(faults_.spurious_again);
  if (!none && !chance(faults_.partial_write)) return true;
  socket.wake_later(POLLOUT, soon());
  size = part_of(size);
  return !none;
}

int SimIo::shutdown(int fd, int how) {
  const Descriptor& descriptor = get(fd);
  if (descriptor.kind == Kind::kSocket) return descriptor.socket->shutdown(how);
  if (descriptor.kind != Kind::kListener) die("%d: shutdown of a pipe", fd);
  descriptor.listener->shut_down();
  return 0;
}

void SimIo::close(int fd) {
  const Descriptor descriptor = remove(fd);
  if (descriptor.kind == Kind::kSocket && descriptor.reset_at_end) {
    descriptor.socket->close_with_reset();
  } else if (descriptor.kind == Kind::kSocket) {
    descriptor.socket->close();
  } else if (descriptor.kind == Kind::kListener) {
    descriptor.listener->set_wake(nullptr);
    network_.unlisten(descriptor.endpoint);
  }
}

int SimIo::set_reset_at_end(int fd, bool reset) {
  socket_of(fd);
  get(fd).reset_at_end = reset;
  return 0;
}

void SimIo::close_with_reset(int fd) {
  socket_of(fd);
  remove(fd).socket->close_with_reset();
}

// --- Pipes.

int SimIo::pipe(int (&fds)[2], std::size_t size) {
  if (const int error = failure(Call::kPipe); error != 0) return error;
  if (full(2)) return -EMFILE;
  const auto pipe = std::make_shared<Pipe>();
  pipe->slots_max = std::min(pipe_slots_max_, std::max<std::size_t>(1, size / kPage));
  fds[0] = add({.kind = Kind::kPipeReader, .pipe = pipe});
  fds[1] = add({.kind = Kind::kPipeWriter, .pipe = pipe});
  return static_cast<int>(pipe->slots_max * kPage);
}

std::ptrdiff_t SimIo::write(int fd, const void* data, std::size_t size) {
  const Descriptor& descriptor = get(fd);
  if (descriptor.kind != Kind::kPipeWriter) die("%d is not the writing end of a pipe", fd);
  if (const int error = failure(Call::kWrite); error != 0) return error;
  Pipe& pipe = *descriptor.pipe;
  std::string_view rest(static_cast<const char*>(data), size);
  if (chance(faults_.no_pages)) {
    if (size <= kPage || chance(0.5)) return -ENOMEM;
    rest = rest.substr(0, part_of((size - 1) / kPage) * kPage);
  }
  std::ptrdiff_t written = 0;
  while (!rest.empty() && pipe.slots.size() < pipe.slots_max) {
    pipe.slots.emplace_back(rest.substr(0, kPage));
    rest.remove_prefix(pipe.slots.back().size());
    written += static_cast<std::ptrdiff_t>(pipe.slots.back().size());
  }
  return written == 0 ? -EAGAIN : written;
}

std::ptrdiff_t SimIo::splice(int from, int to, std::size_t size) {
  Descriptor& source = get(from);
  Descriptor& sink = get(to);
  if (const int error = failure(Call::kSplice); error != 0) return error;
  if (source.kind == Kind::kSocket && sink.kind == Kind::kPipeWriter)
    return splice_in(source, *sink.pipe, size);
  if (source.kind == Kind::kPipeReader && sink.kind == Kind::kSocket) {
    return splice_out(*source.pipe, *sink.socket, size);
  }
  die("splice from %d to %d: neither socket to pipe nor pipe to socket", from, to);
}

std::ptrdiff_t SimIo::splice_in(Descriptor& from, Pipe& pipe, std::size_t size) {
  if (pipe.slots.size() >= pipe.slots_max) return -EAGAIN;  // even if the socket is at its end
  SimSocket& socket = *from.socket;
  if (!socket.complete() && socket.readable_bytes() > 0 && from.seen == 0 && chance(faults_.spurious_again)) {
    socket.wake_later(POLLIN, soon());
    return -EAGAIN;
  }
  // What the kernel returns if it finds no page for bytes that are there.
  if (socket.sound() && socket.readable_bytes() > 0 && chance(faults_.no_pages))
    return socket.complete() ? 0 : -EAGAIN;
  // A short splice proves nothing, so no event reports the rest.
  if (chance(faults_.partial_read)) size = part_of(size);
  from.seen = 0;
  return socket.splice_out(size, [&pipe](std::string_view bytes) {
    std::size_t taken = 0;
    while (taken < bytes.size() && pipe.slots.size() < pipe.slots_max) {
      pipe.slots.emplace_back(bytes.substr(taken, kFragment));
      taken += pipe.slots.back().size();
    }
    return taken;
  });
}

std::ptrdiff_t SimIo::splice_out(Pipe& pipe, SimSocket& to, std::size_t size) {
  if (pipe.slots.empty()) return -EAGAIN;
  if (to.sound() && !take_part(to, size)) return -EAGAIN;
  std::ptrdiff_t moved = 0;
  while (size > 0 && !pipe.slots.empty()) {
    std::string& slot = pipe.slots.front();
    const std::ptrdiff_t sent = to.send(std::string_view(slot).substr(0, size), 0);
    if (sent <= 0) return moved > 0 ? moved : sent;
    moved += sent;
    size -= static_cast<std::size_t>(sent);
    slot.erase(0, static_cast<std::size_t>(sent));
    if (!slot.empty()) break;
    pipe.slots.pop_front();
  }
  return moved;
}

}  // namespace portway::test
