#include "network/routed_connections.h"

#include <arpa/inet.h>

#include <algorithm>

#include "network/bpf_object.h"
#include "network/steer.h"

namespace portway {

bool RoutedConnections::contain(int device, const Endpoint& client, std::uint16_t guest_port,
                                std::chrono::nanoseconds now, std::uint32_t space) const {
  const BpfAddress address = to_bpf_address(client.address());
  const RoutedKey key =
      routed_key(space, static_cast<__u32>(device), &address, ::htons(client.port()), ::htons(guest_port));
  const auto second = static_cast<std::uint64_t>(std::chrono::floor<std::chrono::seconds>(now).count());
  return std::ranges::any_of(table_[key.index].entry, [&](const __u64& place) {
    const __u64 entry = __atomic_load_n(&place, __ATOMIC_RELAXED);  // the program writes meanwhile
    return entry >> 32 == key.tag && routed_until(entry) > second;
  });
}

}  // namespace portway
