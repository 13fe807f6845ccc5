#include "api/capture.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>
#include <vector>

#include "base/fd.h"

namespace portway {
namespace {

using boost::system::error_code;

constexpr std::size_t kSnapBytes = 65535;
constexpr std::size_t kReadBytes = 64 * 1024;
constexpr int kSocketBufferBytes = 4 * 1024 * 1024;

// --- The filter: TCP between the guest's port and anybody, as classic BPF (bpf(4), the kernel's filter.rst).

constexpr std::uint8_t kAccept = 254;  // placeholders for jump targets, resolved by link()
constexpr std::uint8_t kDrop = 255;

sock_filter load(std::uint16_t size, std::uint32_t offset) {
  return BPF_STMT(static_cast<std::uint16_t>(BPF_LD | size | BPF_ABS), offset);
}
sock_filter jump(std::uint16_t test, std::uint32_t value, std::uint8_t yes, std::uint8_t no) {
  return BPF_JUMP(static_cast<std::uint16_t>(BPF_JMP | test | BPF_K), value, yes, no);
}

std::vector<sock_filter> link(std::vector<sock_filter> code) {
  const std::size_t accept = code.size();
  for (std::size_t i = 0; i < accept; ++i) {
    if (BPF_CLASS(code[i].code) != BPF_JMP) continue;
    for (std::uint8_t* target : {&code[i].jt, &code[i].jf}) {
      if (*target == kAccept) *target = static_cast<std::uint8_t>(accept - i - 1);
      if (*target == kDrop) *target = static_cast<std::uint8_t>(accept - i);
    }
  }
  code.push_back(BPF_STMT(BPF_RET | BPF_K, kSnapBytes));
  code.push_back(BPF_STMT(BPF_RET | BPF_K, 0));
  return code;
}

std::vector<sock_filter> filter_v4(const Endpoint& guest) {
  const std::uint32_t address = guest.address().to_v4().to_uint();
  const sock_filter header_length = BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 14);
  const auto port_at = [](std::uint32_t offset) {
    return sock_filter BPF_STMT(BPF_LD | BPF_H | BPF_IND, offset);
  };
  return link({
      load(BPF_H, 12),
      jump(BPF_JEQ, ETH_P_IP, 0, kDrop),  //
      load(BPF_B, 23),
      jump(BPF_JEQ, IPPROTO_TCP, 0, kDrop),
      load(BPF_H, 20),
      jump(BPF_JSET, 0x1fff, kDrop, 0),  // a later fragment has no ports
      load(BPF_W, 26),
      jump(BPF_JEQ, address, 0, 3),  // from the guest
      header_length,
      port_at(14),
      jump(BPF_JEQ, guest.port(), kAccept, kDrop),
      load(BPF_W, 30),
      jump(BPF_JEQ, address, 0, kDrop),  // to the guest
      header_length,
      port_at(16),
      jump(BPF_JEQ, guest.port(), kAccept, kDrop),
  });
}

std::vector<sock_filter> filter_v6(const Endpoint& guest) {
  const auto bytes = guest.address().to_v6().to_bytes();
  const auto word = [&bytes](std::size_t i) {
    return std::uint32_t{bytes[4 * i]} << 24 | std::uint32_t{bytes[4 * i + 1]} << 16 |
           std::uint32_t{bytes[4 * i + 2]} << 8 | bytes[4 * i + 3];
  };
  std::vector<sock_filter> code = {load(BPF_H, 12), jump(BPF_JEQ, ETH_P_IPV6, 0, kDrop),  //
                                   load(BPF_B, 20), jump(BPF_JEQ, IPPROTO_TCP, 0, kDrop)};
  for (std::size_t i = 0; i < 4; ++i) {  // from the guest; if not, continue with "to the guest"
    code.push_back(load(BPF_W, static_cast<std::uint32_t>(22 + 4 * i)));
    const auto no = static_cast<std::uint8_t>(2 * (3 - i) + 2);
    code.push_back(jump(BPF_JEQ, word(i), 0, no));
  }
  code.push_back(load(BPF_H, 54));
  code.push_back(jump(BPF_JEQ, guest.port(), kAccept, kDrop));
  for (std::size_t i = 0; i < 4; ++i) {
    code.push_back(load(BPF_W, static_cast<std::uint32_t>(38 + 4 * i)));
    code.push_back(jump(BPF_JEQ, word(i), 0, kDrop));
  }
  code.push_back(load(BPF_H, 56));
  code.push_back(jump(BPF_JEQ, guest.port(), kAccept, kDrop));
  return link(std::move(code));
}

/// Accepts what is to or from one of them.
std::vector<sock_filter> filter_of(const std::vector<Endpoint>& guests) {
  std::vector<sock_filter> code;
  for (const Endpoint& guest : guests) {
    if (!code.empty()) code.pop_back();  // what one filter drops, the next one examines
    const std::vector<sock_filter> more = guest.address().is_v6() ? filter_v6(guest) : filter_v4(guest);
    code.insert(code.end(), more.begin(), more.end());
  }
  return code;
}

// --- The file.

struct FileHeader {
  std::uint32_t magic = 0xa1b23c4d;  // nanoseconds, in this machine's byte order
  std::uint16_t major = 2;
  std::uint16_t minor = 4;
  std::int32_t zone = 0;
  std::uint32_t accuracy = 0;
  std::uint32_t snap_bytes = kSnapBytes;
  std::uint32_t link_type = 1;  // Ethernet
};

struct PacketHeader {
  std::uint32_t seconds;
  std::uint32_t nanoseconds;
  std::uint32_t captured;
  std::uint32_t size;
};

template <class T>
void append(std::string& out, const T& header) {
  out.append(reinterpret_cast<const char*>(&header), sizeof header);
}

Error failed(const char* call, const std::string& tap) {
  const int error = errno;
  if (error == EPERM || error == EACCES) {
    return {ErrorCode::kForbidden, "A capture needs CAP_NET_RAW; give it to the daemon's service."};
  }
  return {ErrorCode::kResourceExhausted, fmt::format("{} on {}: {}.", call, tap, std::strerror(error))};
}

Error no_device(const std::string& tap) {
  return {ErrorCode::kInstanceNotRunning,
          fmt::format("There is no network device {}: the virtual machine is not running.", tap)};
}

/// In place of the one that it has; errno says why not.
bool set_filter(int socket, const std::vector<Endpoint>& guests) {
  std::vector<sock_filter> code = filter_of(guests);
  const sock_fprog program{.len = static_cast<unsigned short>(code.size()), .filter = code.data()};
  return ::setsockopt(socket, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0;
}

Result<Fd> open_socket(const CaptureOptions& options) {
  if (options.link == 0) return no_device(options.tap);  // bind(2) would take 0 for all devices
  // Protocol 0: nothing is received before the filter is attached.
  Fd fd(::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return failed("socket(AF_PACKET)", options.tap);
  const int on = 1;
  if (!set_filter(fd.get(), options.guests()) ||
      ::setsockopt(fd.get(), SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) != 0) {
    return failed("setsockopt", options.tap);
  }
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &kSocketBufferBytes, sizeof kSocketBufferBytes);
  sockaddr_ll where{};
  where.sll_family = AF_PACKET;
  where.sll_protocol = htons(ETH_P_ALL);
  where.sll_ifindex = options.link;
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&where), sizeof where) != 0) {
    return errno == ENODEV ? no_device(options.tap) : failed("bind", options.tap);
  }
  return fd;
}

class Capture final : public BodyStream, public std::enable_shared_from_this<Capture> {
 public:
  Capture(boost::asio::io_context& context, Fd socket, const CaptureOptions& options,
          std::function<void(const std::string&)> on_end)
      : socket_(context, socket.release()),
        timer_(context),
        left_(options.max_bytes),
        find_guests_(options.guests),
        guests_(find_guests_()),
        on_end_(std::move(on_end)) {
    append(out_, FileHeader{});
    left_ -= std::min(left_, out_.size());
    timer_.expires_after(options.duration);
  }
  ~Capture() override {
    tpacket_stats dropped{};
    socklen_t size = sizeof dropped;
    ::getsockopt(socket_.native_handle(), SOL_PACKET, PACKET_STATISTICS, &dropped, &size);
    on_end_(fmt::format("{} packets captured, {} dropped", packets_, dropped.tp_drops));
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  void on_ready(std::function<void()> wake) override {
    wake_ = std::move(wake);
    timer_.async_wait([weak = weak_from_this()](error_code error) {
      const auto self = weak.lock();
      if (error || !self) return;
      self->over_ = true;
      self->wake_();
    });
    wait();
  }

  std::optional<std::string> read() override {
    while (!over_ && out_.size() < kReadBytes && read_packet()) {
    }
    if (over_ && out_.empty()) return std::nullopt;
    if (!over_) wait();
    return std::exchange(out_, {});
  }

  /// If there is no memory for another filter, the old one stays.
  void on_change() override {
    std::vector<Endpoint> guests = find_guests_();
    if (guests != guests_ && set_filter(socket_.native_handle(), guests)) guests_ = std::move(guests);
  }

  /// Packets still in the socket may be the next session's; the file is complete without them.
  std::string finish_early() override { return std::exchange(out_, {}); }

 private:
  void wait() {
    if (std::exchange(waiting_, true)) return;
    socket_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                       [weak = weak_from_this()](error_code error) {
                         const auto self = weak.lock();
                         if (error || !self) return;
                         self->waiting_ = false;
                         self->wake_();
                       });
  }

  /// False if there is none now.
  bool read_packet() {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(timespec))> control;
    iovec buffer{.iov_base = packet_.data(), .iov_len = packet_.size()};
    msghdr message{};
    message.msg_iov = &buffer;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    // MSG_TRUNC: returns the packet's real size, even if it does not fit.
    const ssize_t size = ::recvmsg(socket_.native_handle(), &message, MSG_TRUNC);
    if (size < 0) {
      over_ = errno != EAGAIN && errno != EINTR;  // ENETDOWN: the tap is gone
      return false;
    }
    timespec time{};
    const cmsghdr* stamp = CMSG_FIRSTHDR(&message);
    if (stamp != nullptr && stamp->cmsg_type == SCM_TIMESTAMPNS) {
      std::memcpy(&time, CMSG_DATA(stamp), sizeof time);
    } else {
      ::clock_gettime(CLOCK_REALTIME, &time);
    }
    const std::size_t captured = std::min(static_cast<std::size_t>(size), packet_.size());
    if (sizeof(PacketHeader) + captured > left_) {
      over_ = true;
      return false;
    }
    left_ -= sizeof(PacketHeader) + captured;
    append(out_,
           PacketHeader{static_cast<std::uint32_t>(time.tv_sec), static_cast<std::uint32_t>(time.tv_nsec),
                        static_cast<std::uint32_t>(captured), static_cast<std::uint32_t>(size)});
    out_.append(packet_.data(), captured);
    ++packets_;
    return true;
  }

  boost::asio::posix::stream_descriptor socket_;
  boost::asio::steady_timer timer_;
  std::function<void()> wake_;
  std::size_t left_;  // bytes that may still be added to the file
  std::string out_;   // not read yet
  std::array<char, kSnapBytes> packet_;
  std::uint64_t packets_ = 0;
  bool waiting_ = false;
  bool over_ = false;
  const std::function<std::vector<Endpoint>()> find_guests_;
  std::vector<Endpoint> guests_;  // that the filter lets through
  const std::function<void(const std::string&)> on_end_;
};

}  // namespace

Result<std::shared_ptr<BodyStream>> start_capture(boost::asio::io_context& context,
                                                  const CaptureOptions& options,
                                                  std::function<void(const std::string&)> on_end) {
  std::optional<InNamespace> inside;  // until the socket is made, which stays there
  if (options.netns) {
    auto entered = options.netns->enter();
    if (!entered) return entered.error();
    inside.emplace(std::move(*entered));
  }
  auto socket = open_socket(options);
  if (!socket) return socket.error();
  return std::shared_ptr<BodyStream>(
      std::make_shared<Capture>(context, std::move(*socket), options, std::move(on_end)));
}

}  // namespace portway
