#include "gateway/etcd_answers.h"

#include <fmt/format.h>

namespace portway {

Error unavailable(const EtcdError& error, std::string_view what) {
  // The caller may not know of etcd's addresses: the gateway's log and its faults say more.
  switch (error.kind) {
    case EtcdErrorKind::kUnknownOutcome:
    case EtcdErrorKind::kBadAnswer:
    case EtcdErrorKind::kWrongCluster:
      return {ErrorCode::kStoreUnavailable,
              fmt::format("{}, and etcd has not said whether it was: look before you try again.", what)};
    case EtcdErrorKind::kNoSpace:
      return {ErrorCode::kStoreUnavailable, fmt::format("{}, but etcd is full; nothing was changed.", what)};
    default:
      return {ErrorCode::kStoreUnavailable,
              fmt::format("{}, but etcd is not available ({}); nothing was changed.", what,
                          to_string(error.kind))};
  }
}

}  // namespace portway
