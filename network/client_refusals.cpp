#include "network/client_refusals.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "base/fd.h"
#include "network/bpf_object.h"
#include "network/refuse.h"

namespace portway {
namespace {

RefusalKey key_of(const Endpoint& local, const IpAddress& client) {
  return {
      .client = to_bpf_address(client), .local = to_bpf_address(local.address()), .local_port = local.port()};
}

class KernelRefusals final : public ClientRefusals {
 public:
  KernelRefusals(std::unique_ptr<BpfObject> object, bpf_link* link)
      : object_(std::move(object)), link_(link), map_(object_->map_fd("refusals")) {}
  ~KernelRefusals() override { bpf_link__destroy(link_); }
  KernelRefusals(const KernelRefusals&) = delete;
  KernelRefusals& operator=(const KernelRefusals&) = delete;

  bool refuse(const Endpoint& local, const IpAddress& client) override {
    const RefusalKey key = key_of(local, client);
    const std::uint64_t not_yet = 0;
    return bpf_map_update_elem(map_, &key, &not_yet, BPF_ANY) == 0;
  }

  void allow(const Endpoint& local, const IpAddress& client) override {
    const RefusalKey key = key_of(local, client);
    bpf_map_delete_elem(map_, &key);
  }

  std::chrono::nanoseconds last_asked(const Endpoint& local, const IpAddress& client) override {
    const RefusalKey key = key_of(local, client);
    std::uint64_t when = 0;
    if (bpf_map_lookup_elem(map_, &key, &when) != 0) return {};
    return std::chrono::nanoseconds(when);
  }

 private:
  const std::unique_ptr<BpfObject> object_;
  bpf_link* const link_;  // holds the program at the namespace; not pinned, so that it goes with the process
  const int map_;
};

}  // namespace

Result<std::unique_ptr<ClientRefusals>> start_client_refusals() {
  auto object = BpfObject::load(refuse_object(), "Linux 5.9");
  if (!object) return object.error();
  const Fd network(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!network) return (*object)->refused("/proc/thread-self/ns/net", errno);
  bpf_link* link = bpf_program__attach_netns((*object)->program("portway_refuse"), network.get());
  if (link == nullptr) return (*object)->refused("attach to the network namespace", errno);
  return std::unique_ptr<ClientRefusals>(std::make_unique<KernelRefusals>(std::move(*object), link));
}

}  // namespace portway
