// More keys than fit into one answer.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <cstdint>
#include <functional>

#include "fleet/etcd.h"

namespace portway {

/// Reads all of the keys, as they were at one revision, and returns that. Pages have up to `page` keys, and
/// fewer if an answer would be too large. `take` has each key in turn; if it returns false, reading ends with
/// kClosed, and `etcd` may be gone.
Etcd::Awaitable<std::int64_t> read_all(Etcd& etcd, EtcdKeys keys, std::int64_t page,
                                       std::function<bool(EtcdKeyValue&&)> take);

}  // namespace portway
