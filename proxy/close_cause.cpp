#include "proxy/close_cause.h"

#include <cerrno>

namespace portway {
namespace {

/// TCP gave up: the peer answered neither keepalive probes nor retransmissions. If an ICMP error has
/// arrived meanwhile, such as a refusal, the socket reports that instead (sk_err_soft).
bool is_silence(int error) {
  const ConnectError reported = connect_error(error);
  return reported == ConnectError::kTimeout || reported == ConnectError::kUnreachable ||
         reported == ConnectError::kRefused;
}

CloseHow close_how(ConnectError error) {
  switch (error) {
    case ConnectError::kRefused:
      return CloseHow::kRefused;
    case ConnectError::kTimeout:
      return CloseHow::kConnectTimeout;
    default:
      return CloseHow::kConnectError;
  }
}

}  // namespace

ConnectError connect_error(int error) {
  switch (error) {
    case ECONNREFUSED:
    case ENOENT:  // nobody has made the Unix socket
      return ConnectError::kRefused;
    case ETIMEDOUT:
      return ConnectError::kTimeout;
    // The kernel's errnos for ICMP errors (icmp_err_convert[], tab_unreach[] of icmpv6).
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN:
    case EHOSTDOWN:
    case ENONET:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
    case EPROTO:
    case EACCES:  // IPv6: administratively prohibited
      return ConnectError::kUnreachable;
    case ENODEV:
      return ConnectError::kDeviceGone;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
      return ConnectError::kResources;
    case EADDRNOTAVAIL:
      return ConnectError::kSourcePorts;
    default:
      return ConnectError::kOther;
  }
}

CloseCause cause_of(ConnectError error) {
  const bool by_guest = error == ConnectError::kRefused || error == ConnectError::kTimeout;
  return {by_guest ? CloseSide::kGuest : CloseSide::kNode, close_how(error)};
}

CloseHow close_how(RejectReason reason) {
  switch (reason) {
    case RejectReason::kForwardGone:
      return CloseHow::kForwardDeleted;
    case RejectReason::kDraining:
      return CloseHow::kShutdown;
    case RejectReason::kClientGone:
      return CloseHow::kReset;
    case RejectReason::kInstanceShare:
    case RejectReason::kForwardShare:
    case RejectReason::kSourceShare:
    case RejectReason::kOwnerConnectionsMax:
    case RejectReason::kSourceAddress:
    case RejectReason::kConnectionsMax:
    case RejectReason::kSourceNotAllowed:
    case RejectReason::kForwardConnectionsMax:
    case RejectReason::kSourceConnectionsMax:
    case RejectReason::kNewConnectionRate:
      break;
  }
  return CloseHow::kLimit;
}

CloseCause cause_of(Side side, int error) {
  if (is_silence(error)) return {close_side(side), CloseHow::kKeepaliveTimeout};
  if (is_shortage(error)) return {CloseSide::kNode, CloseHow::kResources};
  return {close_side(side), CloseHow::kReset};
}

bool is_reset(int error) {
  return error == ECONNRESET || error == EPIPE;  // EPIPE: after the peer's FIN
}

bool is_shortage(int error) {
  return error == ENOMEM || error == ENOBUFS;
}

}  // namespace portway
