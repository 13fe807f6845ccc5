// How a program on the node reaches a port of a Firecracker guest's vsock: it connects to the Unix socket of
// the VMM, sends "CONNECT 3000\n" and reads "OK 1073741824\n", the port that the VMM has given it. From the
// next byte on the stream is the guest's (Firecracker, docs/vsock.md, "Host-Initiated Connections"). If the
// guest does not listen, the VMM closes the connection without an answer.
//
// Pure, apart from the caller's recv. Any thread.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace portway {

/// "CONNECT 3000\n".
std::string vsock_request(std::uint32_t port);

enum class VsockAnswer : std::uint8_t {
  kIncomplete,  // so far it is right
  kAccepted,
  kWrong,  // or longer than kVsockAnswerMax
};
// "OK ", a 32-bit number and a newline. In bytes.
inline constexpr std::size_t kVsockAnswerMax = 3 + 10 + 1;
/// `received` is what has come so far, at most kVsockAnswerMax bytes of it; `size` becomes the size of a
/// complete answer, behind which the guest's bytes begin.
VsockAnswer parse_vsock_answer(std::string_view received, std::size_t& size);

/// Takes the answer out of a non-blocking socket, and nothing behind it. `receive` is recv(2) that returns
/// -errno; `ended`: nothing more will come. 0: accepted. -EAGAIN: call again when there is more.
/// -ECONNREFUSED: the connection ended without an answer. -EBADMSG: it is something else, or breaks off.
template <class Receive>
int take_vsock_answer(const Receive& receive, bool ended) {
  std::array<char, kVsockAnswerMax> buffer;
  const std::ptrdiff_t seen = receive(buffer.data(), buffer.size(), MSG_PEEK);
  if (seen == 0 || seen == -ECONNRESET || seen == -EPIPE) return -ECONNREFUSED;
  if (seen < 0) return static_cast<int>(seen);
  std::size_t size = 0;
  switch (parse_vsock_answer({buffer.data(), static_cast<std::size_t>(seen)}, size)) {
    case VsockAnswer::kIncomplete:
      return ended ? -EBADMSG : -EAGAIN;
    case VsockAnswer::kWrong:
      return -EBADMSG;
    case VsockAnswer::kAccepted:
      break;
  }
  for (std::size_t taken = 0; taken < size;) {
    const std::ptrdiff_t got = receive(buffer.data(), size - taken, 0);
    if (got <= 0) return -EBADMSG;
    taken += static_cast<std::size_t>(got);
  }
  return 0;
}

}  // namespace portway
