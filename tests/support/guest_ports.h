// The services of guest_service, by port: the contract between it and the tests.
#pragma once

#include <cstdint>

namespace portway::test {

inline constexpr std::uint16_t kHttpPort = 3000;    // GET / : a greeting; then FIN
inline constexpr std::uint16_t kEchoPort = 3001;    // sends back what it gets; FIN after FIN
inline constexpr std::uint16_t kDigestPort = 3002;  // reads until FIN, then "BYTES SHA256\n" and FIN
inline constexpr std::uint16_t kSourcePort =
    3003;  // "N\n": N bytes of Pattern(1) and FIN; then reads until the client's FIN
inline constexpr std::uint16_t kResetPort =
    3004;  // "N\n": N bytes of Pattern(1); once they are acknowledged, RST
inline constexpr std::uint16_t kClosedPort = 3005;  // nobody listens until kSwitchPort gets "open\n"
inline constexpr std::uint16_t kWhoPort = 3006;     // "ADDRESS PORT TOS\n" of the client's SYN, and FIN
inline constexpr std::uint16_t kSwitchPort =
    3007;  // "open\n" or "close\n": what kClosedPort is; then "done\n"

/// Printed on standard output when all of them listen.
inline constexpr const char* kGuestReadyLine = "guest_service: ready";

}  // namespace portway::test
