#include "proxy/inherited.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <iterator>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "base/socket.h"
#include "network/proxy_header.h"
#include "network/tcp_progress.h"
#include "proxy/in_flight.h"

namespace portway {
namespace {

constexpr std::int64_t kLately = 60'000'000'000;  // ns
constexpr std::size_t kCrashesMax = 3;            // within that time

void close_after_fin(int fd) {
  if (fd < 0) return;
  set_reset_at_end(fd, false);
  ::close(fd);
}

void close_pipe(RelayState& state) {
  for (std::int32_t& end : state.pipe) {
    if (end >= 0) ::close(std::exchange(end, -1));
  }
  state.pipe_bytes = 0;
  state.in_spare = false;
}

/// As the other side of the node knows it: no zone, and IPv4 as IPv4.
Endpoint folded(const Endpoint& endpoint) {
  return {portway::folded(endpoint.address()), endpoint.port()};
}

/// The interface that its packets must use; 0: any.
int bound_device(int fd) {
  int index = 0;
  socklen_t size = sizeof index;
  return ::getsockopt(fd, SOL_SOCKET, SO_BINDTOIFINDEX, &index, &size) == 0 ? index : 0;
}

int tcp_state(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info;
  return ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 ? info.tcpi_state : -1;
}

/// Whether the guest has accepted a connection, which the worker had not seen. Then it only has to be
/// relayed, unless the node itself was to send something first.
bool was_just_connected(const ConnectionSlot& slot, int upstream) {
  if (slot.socket[kUpstream].is_unix || slot.source == SourcePlan::kProxyV2) return false;
  const int state = tcp_state(upstream);
  return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;
}

/// A connection to a guest, perhaps still being made. close(2) would not end it while the predecessor's
/// keeper has it too, and it would keep the client's port from the next one.
void abandon(int fd) {
  if (fd < 0) return;
  const sockaddr none{.sa_family = AF_UNSPEC, .sa_data = {}};
  (void)::connect(fd, &none, sizeof none);
  close_with_reset(fd);
}

bool is_connected_unix(int fd) {
  sockaddr_un peer{};
  socklen_t size = sizeof peer;
  return ::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0;
}

/// Its connection had ended, and it was about to be closed: what it has taken is still to be delivered.
bool has_sent_fin(int fd) {
  const int state = tcp_state(fd);
  return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING || state == TCP_LAST_ACK;
}

bool is_reset_at_end(int fd) {
  linger option{};
  socklen_t size = sizeof option;
  return ::getsockopt(fd, SOL_SOCKET, SO_LINGER, &option, &size) == 0 && option.l_onoff != 0;
}

/// It listens or has listened; a connection that was reset has had a segment at least.
bool was_never_connected(int fd) {
  struct {
    std::byte others[140];  // tcp_info of linux/tcp.h, which does not go together with netinet/tcp.h
    std::uint32_t segments_in;
  } info{};
  socklen_t size = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 || size < sizeof info) return false;
  const int state = tcp_state(fd);
  return state == TCP_LISTEN || (state == TCP_CLOSE && info.segments_in == 0);
}

/// Of a Unix socket that has a name; else empty.
std::string path_of(int fd) {
  sockaddr_un name{};
  socklen_t size = sizeof name;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &size) != 0 || name.sun_family != AF_UNIX)
    return "";
  return name.sun_path;
}

std::uint32_t bytes_in_pipe(const RelayState& state) {
  int bytes = 0;
  if (state.pipe[0] < 0 || ::ioctl(state.pipe[0], FIONREAD, &bytes) != 0) return 0;
  return static_cast<std::uint32_t>(bytes);
}

/// What the node itself has written to the guest before the client's first byte.
std::optional<std::uint64_t> own_bytes(const ConnectionSlot& slot, Side to) {
  if (to != kUpstream || slot.source != SourcePlan::kProxyV2) return 0;
  const auto destination = local_endpoint(slot.socket[kDownstream].fd);
  if (!destination) return std::nullopt;
  return proxy_header(to_endpoint(slot.client), *destination).size;
}

std::optional<DirectionProgress> progress_of(const ConnectionSlot& slot, Side from) {
  const SocketState& source = slot.socket[from];
  const SocketState& sink = slot.socket[other(from)];
  if (source.is_unix || sink.is_unix) return std::nullopt;
  const auto at_source = tcp_progress(source.fd, from == kUpstream, source.error);
  const auto at_sink = tcp_progress(sink.fd, from == kDownstream, sink.error);
  const auto own = own_bytes(slot, other(from));
  if (!at_source || !at_sink || !own || at_sink->written < *own) return std::nullopt;
  return DirectionProgress{
      .read = at_source->read, .written = at_sink->written - *own, .piped = bytes_in_pipe(slot.relay[from])};
}

/// Puts `rest` behind what is in the direction's pipe: both go into a new one, and the old one still has its
/// bytes if this process dies.
bool put_behind(RelayState& state, std::uint32_t piped, std::span<const std::byte> rest) {
  int ends[2];
  if (::pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) return false;
  RelayState with{};
  with.pipe[0] = ends[0];
  with.pipe[1] = ends[1];
  const std::size_t all = piped + rest.size();
  // Each page of the old pipe takes a place of the new one, however little is in it.
  const int wanted = static_cast<int>(std::max<std::size_t>(2 * all, state.pipe_capacity) + 65536);
  const int capacity = ::fcntl(ends[0], F_SETPIPE_SZ, wanted);
  bool whole = capacity > 0;
  if (whole && piped > 0)
    whole = ::tee(state.pipe[0], ends[1], piped, SPLICE_F_NONBLOCK) == static_cast<ssize_t>(piped);
  if (whole) whole = ::write(ends[1], rest.data(), rest.size()) == static_cast<ssize_t>(rest.size());
  if (!whole) {
    close_pipe(with);
    return false;
  }
  close_pipe(state);
  std::ranges::copy(with.pipe, state.pipe);
  state.pipe_capacity = static_cast<std::uint32_t>(capacity);
  state.pipe_bytes = static_cast<std::uint32_t>(all);
  return true;
}

/// Bytes that the sink has and the source still offers.
bool read_again(int fd, std::uint64_t bytes) {
  std::array<std::byte, 4096> scratch;
  while (bytes > 0) {
    const auto got = ::recv(fd, scratch.data(), std::min<std::uint64_t>(bytes, scratch.size()), MSG_DONTWAIT);
    if (got <= 0) return false;
    bytes -= static_cast<std::uint64_t>(got);
  }
  return true;
}

/// A reset that was not noted. Its error waits, or has been read: then nothing from this side was under way.
/// Bytes before it may be unread.
enum class FoundReset : std::uint8_t { kNone, kUnread, kRead };
FoundReset find_reset(ConnectionSlot& slot, Side side) {
  SocketState& socket = slot.socket[side];
  if (socket.is_unix || socket.read_ended || socket.error != 0) return FoundReset::kNone;
  // Once a FIN was sent, or perhaps sent, TCP_CLOSE is also the end after both. A reset's error stays unread.
  if (socket.write_ended || slot.relay[other(side)].ended) return FoundReset::kNone;
  // Faster than TCP_INFO, and nearly always the answer: the kernel reports the state TCP_CLOSE as POLLHUP.
  pollfd poll{.fd = socket.fd, .events = 0, .revents = 0};
  if (::poll(&poll, 1, 0) == 0 || tcp_state(socket.fd) != TCP_CLOSE) return FoundReset::kNone;
  int error = 0;
  socklen_t size = sizeof error;
  ::getsockopt(socket.fd, SOL_SOCKET, SO_ERROR, &error, &size);
  socket.error = static_cast<std::int16_t>(error != 0 ? error : ECONNRESET);
  return error != 0 ? FoundReset::kUnread : FoundReset::kRead;
}

/// Makes a direction's state what the kernel says. False: it cannot be told.
bool make_exact(ConnectionSlot& slot, Side from, const FoundReset (&resets)[2], const RelayMemory& memory,
                bool is_in_hand) {
  RelayState& state = slot.relay[from];
  const bool has_sink = !slot.socket[other(from)].write_ended && resets[other(from)] == FoundReset::kNone;
  if (!has_sink || state.ended) {
    close_pipe(state);  // nobody reads it any more
    return true;
  }
  if (resets[from] == FoundReset::kRead) return !state.in_spare;
  if (!is_in_hand && !state.in_spare) return true;  // no call was under way
  if (memory.in_hand == RelayMemory::kNobody) {     // nor for the owner of the spare buffer
    state.in_spare = false;
    return put_behind(state, state.pipe_bytes, memory.in_spare());
  }
  const auto progress = progress_of(slot, from);
  if (!progress) return false;
  const auto found = in_flight(*progress, state, memory, is_in_hand);
  if (!found) return false;
  state.bytes = found->bytes;
  state.pipe_bytes = found->pipe_bytes;
  state.in_spare = false;
  if (found->sent_before > 0) return read_again(slot.socket[from].fd, found->sent_before);
  return found->rest.empty() || put_behind(state, found->pipe_bytes, found->rest);
}

/// The same for both.
bool make_exact(ConnectionSlot& slot, const RelayMemory& memory, bool is_in_hand) {
  if (slot.state != ConnectionState::kRelaying) return true;
  const FoundReset resets[] = {find_reset(slot, kDownstream), find_reset(slot, kUpstream)};
  return std::ranges::all_of(kSides,
                             [&](Side from) { return make_exact(slot, from, resets, memory, is_in_hand); });
}

}  // namespace

std::string_view to_string(Lost reason) {
  switch (reason) {
    case Lost::kUnknown:
      return "unknown";
    case Lost::kIncomplete:
      return "incomplete";
    case Lost::kNoForward:
      return "no_forward";
    case Lost::kConnections:
      return "connections_max";
    case Lost::kPoison:
      return "poison";
  }
  return "";
}

Result<std::unique_ptr<Inherited>> Inherited::read(Fd memory, std::vector<Fd> descriptors) {
  const SlotArena arena(std::move(memory));
  if (arena.fault() != ArenaFault::kNone) {
    return Error{ErrorCode::kInternal,
                 fmt::format("The connections of the daemon that has died cannot be taken over ({}). Start "
                             "its version again, or wait until its keeper has given up "
                             "(proxy.handover_timeout_s).",
                             to_string(arena.fault()))};
  }
  std::unique_ptr<Inherited> inherited(new Inherited(std::move(descriptors)));
  inherited->note_crashes(arena);
  std::ranges::copy_if(arena.kept_forwards(), std::back_inserter(inherited->kept_),
                       [](const KeptForward& each) { return !each.id.is_nil(); });
  for (std::size_t i = 0; i < arena.tables(); ++i) inherited->read(arena.table(i));
  inherited->usage_ = UsageMeters::read(arena.meters(), arena.tables(), arena.header().meters_used);
  inherited->sort_rest();
  return inherited;
}

Inherited::~Inherited() {
  // A clean end would look like a service with nothing to send.
  for (auto& [local, fd] : clients_) close_with_reset(fd.release());
  for (auto& [local, fd] : upstreams_) abandon(fd.release());
  // At once, and not when the predecessor's keeper has closed it too.
  for (auto& [local, fd] : listeners_) ::shutdown(fd.get(), SHUT_RDWR);
}

void Inherited::note_crashes(const SlotArena& arena) {
  crashes_ = arena.header().crashes_ns;
  bool crashed = false;
  for (std::size_t i = 0; i < arena.tables(); ++i) crashed = crashed || arena.table(i).relay.crashed != 0;
  if (!crashed) return;
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  const std::int64_t now_ns = now.tv_sec * std::int64_t{1'000'000'000} + now.tv_nsec;
  std::rotate(crashes_.begin(), crashes_.end() - 1, crashes_.end());  // clang 14 has no ranges::rotate
  crashes_[0] = now_ns;
  crashes_lately_ = static_cast<std::size_t>(std::ranges::count_if(
      crashes_, [now_ns](std::int64_t at) { return at != 0 && now_ns - at <= kLately; }));
}

/// After the third crash within a minute the connection that the crashed worker was moving goes, after the
/// next one all of that worker's: one that crashes the relay must not end all others.
bool Inherited::is_poison(const ArenaTable& table, std::uint32_t index) const {
  if (table.relay.crashed == 0 || crashes_lately_ < kCrashesMax) return false;
  return crashes_lately_ > kCrashesMax || table.relay.in_hand == index;
}

void Inherited::read(const ArenaTable& table) {
  std::ranges::copy_if(table.refusals, std::back_inserter(refusals_),
                       [](const NotedRefusal& each) { return !each.forward.is_nil(); });
  std::vector<ConnectionSlot>& connections = connections_.emplace_back();
  const RelayMemory& memory = table.relay;
  for (std::uint32_t index = 0; index < table.slots.size(); ++index) {
    if (table.slots[index].state == ConnectionState::kFree) continue;
    ConnectionSlot slot = table.slots[index];
    if (slot.state == ConnectionState::kConnecting) {
      if (!was_just_connected(slot, at(slot.socket[kUpstream].fd))) {
        // It is connected again from the beginning: its client waits like one that was just accepted.
        abandon(take(slot.socket[kUpstream].fd));
        continue;
      }
      slot.state = ConnectionState::kRelaying;
      slot.connected_ns = slot.active_ns =
          std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
    }
    ++found_;
    const bool complete = take_descriptors(slot);
    if (slot.state == ConnectionState::kClosing) {
      --found_;
      close(slot);
      continue;
    }
    if (!complete) {
      reset(slot, Lost::kIncomplete);
      continue;
    }
    if (is_poison(table, index)) {
      reset(slot, Lost::kPoison);
      continue;
    }
    if (make_exact(slot, memory, memory.in_hand == index)) {
      connections.push_back(slot);
    } else {
      reset(slot, Lost::kUnknown);
    }
  }
  std::ranges::sort(connections, {}, &ConnectionSlot::serial);
}

int Inherited::at(int number) const {
  const auto place = static_cast<std::size_t>(number);
  return number >= 0 && place < descriptors_.size() ? descriptors_[place].get() : -1;
}

int Inherited::take(int number) {
  return at(number) < 0 ? -1 : descriptors_[static_cast<std::size_t>(number)].release();
}

/// From now on the slot has this process's numbers, and owns them. False if one is missing.
bool Inherited::take_descriptors(ConnectionSlot& slot) {
  bool complete = true;
  for (const Side side : kSides) {
    slot.socket[side].fd = take(slot.socket[side].fd);
    complete = complete && slot.socket[side].fd >= 0;
    RelayState& state = slot.relay[side];
    const bool had_pipe = state.pipe[0] >= 0;
    for (std::int32_t& end : state.pipe) end = take(end);
    complete = complete && (!had_pipe || (state.pipe[0] >= 0 && state.pipe[1] >= 0));
  }
  return complete;
}

/// No more bytes were to be moved.
void Inherited::close(ConnectionSlot& slot) {
  for (const Side side : kSides) {
    close_pipe(slot.relay[side]);
    if (slot.cause.how == CloseHow::kFin) {
      close_after_fin(slot.socket[side].fd);
    } else {
      close_with_reset(slot.socket[side].fd);
    }
  }
}

void Inherited::reset(const ConnectionSlot& slot, Lost reason) {
  ++lost_[static_cast<std::size_t>(reason)];
  ConnectionSlot ended = slot;
  for (const Side side : kSides) {
    close_pipe(ended.relay[side]);
    close_with_reset(ended.socket[side].fd);
  }
}

void Inherited::sort_rest() {
  std::vector<std::pair<Endpoint, Fd*>> connected;  // by their local ends
  std::set<Endpoint> clients;
  for (Fd& fd : descriptors_) {
    if (!fd) continue;
    if (const auto local = local_endpoint(fd.get())) {
      const auto remote = remote_endpoint(fd.get());
      if (has_sent_fin(fd.get())) {
        close_after_fin(fd.release());
      } else if (remote) {
        connected.emplace_back(*local, &fd);
        if (!is_reset_at_end(fd.get())) clients.insert(folded(*remote));
      } else if (was_never_connected(fd.get())) {
        listeners_.emplace(*local, std::move(fd));
      }
    } else if (std::string path = path_of(fd.get()); !path.empty() && !is_connected_unix(fd.get())) {
      unix_listeners_.emplace(std::move(path), std::move(fd));
    }
  }
  for (const auto& [local, fd] : connected) {
    if (clients.contains(folded(local))) {
      upstreams_.emplace(folded(local), std::move(*fd));
    } else if (is_reset_at_end(fd->get())) {
      close_with_reset(fd->release());
    } else {
      clients_.emplace(local, std::move(*fd));
    }
  }
  std::erase_if(descriptors_, [](const Fd& each) { return !each; });
}

std::size_t Inherited::left_over() const {
  return descriptors_.size() + listeners_.size() + unix_listeners_.size() + clients_.size() +
         upstreams_.size();
}

Fd Inherited::take_listener(const Endpoint& endpoint) {
  auto found = listeners_.extract(endpoint);
  return found ? std::move(found.mapped()) : Fd();
}

Fd Inherited::take_listener(const std::string& path) {
  auto found = unix_listeners_.extract(path);
  return found ? std::move(found.mapped()) : Fd();
}

std::vector<NotedRefusal> Inherited::take_refusals(const ForwardId& forward) {
  std::vector<NotedRefusal> taken;
  std::ranges::copy_if(refusals_, std::back_inserter(taken),
                       [&](const NotedRefusal& each) { return each.forward == forward; });
  std::erase_if(refusals_, [&](const NotedRefusal& each) { return each.forward == forward; });
  return taken;
}

Fd Inherited::take_upstream(const Endpoint& client, const Endpoint& guest, int device, std::uint64_t netns) {
  const auto [begin, end] = upstreams_.equal_range(folded(client));
  const auto found = std::find_if(begin, end, [&](const auto& each) {
    const int fd = each.second.get();
    const auto remote = remote_endpoint(fd);
    return remote && folded(*remote) == folded(guest) && bound_device(fd) == std::max(device, 0) &&
           netns_cookie(fd) == netns;
  });
  return found == end ? Fd() : std::move(upstreams_.extract(found).mapped());
}

std::vector<Fd> Inherited::take_clients(const Endpoint& listener) {
  std::vector<Fd> clients;
  const auto [begin, end] = clients_.equal_range(listener);
  for (auto each = begin; each != end; ++each) clients.push_back(std::move(each->second));
  clients_.erase(begin, end);
  return clients;
}

}  // namespace portway
