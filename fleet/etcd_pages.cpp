#include "fleet/etcd_pages.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace portway {

Etcd::Awaitable<std::int64_t> read_all(Etcd& etcd, EtcdKeys keys, std::int64_t page,
                                       std::function<bool(EtcdKeyValue&&)> take) {
  std::int64_t revision = 0;
  std::optional<EtcdRange> range = EtcdRange{.keys = std::move(keys), .limit = page};
  while (range) {
    auto answer = co_await etcd.range(*range);
    if (!answer && answer.error().kind == EtcdErrorKind::kTooLarge && range->limit > 1) {
      range->limit /= 2;
      continue;
    }
    if (!answer) co_return answer.error();
    if (revision == 0) revision = answer->header.revision;
    range = next_page(*range, *answer);
    if (range) range->limit = std::min(page, 2 * range->limit);  // perhaps only that one was so large
    for (EtcdKeyValue& kv : answer->kvs) {
      if (take(std::move(kv))) continue;
      co_return EtcdError{.kind = EtcdErrorKind::kClosed, .detail = "nobody wants the rest"};
    }
  }
  co_return revision;
}

}  // namespace portway
